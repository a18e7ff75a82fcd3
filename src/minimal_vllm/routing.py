"""Routers: choose the replica that serves a request, in a cluster as in a simulation.

A router knows to which replicas it sent which prompts, how many requests each has not answered yet,
and which blocks each has evicted since, as far as it was told. It knows no clock and no network.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from minimal_vllm.cache.prefix_hash import extend_block_hashes

if TYPE_CHECKING:
    from array import array

MIN_MATCH = 0.3
"""Minimum fraction of a prompt that a remembered prefix must cover to decide the route. The values
of this and the next two constants are the defaults of vLLM's and SGLang's routers."""
IMBALANCE_FACTOR = 1.5
"""Ratio of the highest to the lowest load above which loads may count as unbalanced."""
IMBALANCE = 64
"""Difference of the highest and the lowest load, in requests, above which they may do so."""

Replica = TypeVar("Replica", bound=Hashable)
"""Name of a replica, such as its number or its id."""


class Routable(Protocol):
    """A request as routers read it."""

    token_ids: "array[int]"
    """Token ids of the prompt."""
    block_hashes: list[bytes]
    """Hashes of its full blocks, as far as they are known; a router adds those it needs."""
    cache_salt: bytes


class Router(ABC, Generic[Replica]):
    """Base class of routers.

    Args:
        replicas: the replicas at the start.
        block_size: tokens per KV block.
    """

    def __init__(self, replicas: Iterable[Replica], block_size: int) -> None:
        self.loads: dict[Replica, int] = dict.fromkeys(replicas, 0)
        """Number of unanswered requests per replica, which the caller updates. The replica that was
        chosen longest ago comes first."""
        self._block_size = block_size

    def choose(self, request: Routable) -> Replica:
        """Return the replica that serves a request.

        Raises:
            LookupError: there is no replica.
        """
        if not self.loads:
            raise LookupError("there is no replica")
        replica = self.pick(request)
        self.loads[replica] = self.loads.pop(replica)  # now it is the last one
        return replica

    @abstractmethod
    def pick(self, request: Routable) -> Replica:
        """Return the replica that suits a request best; there is at least one."""

    def add(self, replica: Replica) -> None:
        """Choose this replica, too, from now on."""
        self.loads.setdefault(replica, 0)

    def remove(self, replica: Replica) -> None:
        """Never choose this replica again."""
        self.forget_all(replica)
        self.loads.pop(replica, None)

    def forget(self, replica: Replica, hashes: Iterable[bytes]) -> None:
        """Take notice that a replica has evicted blocks."""

    def forget_all(self, replica: Replica) -> None:
        """Take notice that a replica's cache is empty."""


class RoundRobin(Router[Replica]):
    """Router that chooses one replica after the other."""

    def pick(self, request: Routable) -> Replica:  # noqa: ARG002 - all requests are alike
        """Return the replica that was chosen longest ago."""
        return next(iter(self.loads))


class LeastLoaded(Router[Replica]):
    """Router that chooses the replica with the fewest unanswered requests."""

    def pick(self, request: Routable) -> Replica:  # noqa: ARG002
        """Return, of the replicas with the lowest load, the one that was chosen longest ago."""
        lowest = min(self.loads.values())
        return next(replica for replica, load in self.loads.items() if load == lowest)


class PrefixAware(LeastLoaded[Replica]):
    """Router that prefers the replicas that hold the longest prefix of the prompt.

    It follows the ``cache_aware`` policy of vLLM's and SGLang's routers. The prefix decides if it
    covers at least ``MIN_MATCH`` of the prompt and the loads are balanced. Otherwise the least
    loaded replica is chosen, which then holds the prefix, too. Loads are unbalanced if the highest
    exceeds the lowest by more than ``IMBALANCE`` requests *and* by more than a factor of
    ``IMBALANCE_FACTOR``, so no replica stays idle while others queue.

    A replica is taken to hold the blocks of all prompts that were sent to it, until ``forget`` says
    otherwise. Of several replicas that hold the prefix, the least loaded is chosen.

    Args:
        replicas: the replicas at the start.
        block_size: tokens per KV block.
        num_remembered: maximum number of different blocks to remember.
    """

    def __init__(
        self, replicas: Iterable[Replica], block_size: int, num_remembered: int = 1_000_000
    ) -> None:
        super().__init__(replicas, block_size)
        self._num_remembered = num_remembered
        self._holders: OrderedDict[bytes, tuple[Replica, ...]] = OrderedDict()

    def pick(self, request: Routable) -> Replica:
        """Return a replica, and remember that it will hold the prompt."""
        # The scheduler needs the same hashes. It finds them in the request and does not redo them.
        extend_block_hashes(
            request.block_hashes, request.token_ids, self._block_size, request.cache_salt
        )
        holders, num_blocks = self._longest_match(request.block_hashes)
        is_match = num_blocks * self._block_size >= MIN_MATCH * len(request.token_ids)
        if num_blocks and is_match and not self._is_unbalanced():
            replica = min(holders, key=self.loads.__getitem__)
        else:
            replica = super().pick(request)
        self._remember(request.block_hashes, replica)
        return replica

    def forget(self, replica: Replica, hashes: Iterable[bytes]) -> None:
        """Take notice that a replica has evicted blocks."""
        for block_hash in hashes:
            holders = self._holders.get(block_hash, ())
            if replica not in holders:
                continue
            if len(holders) == 1:
                del self._holders[block_hash]
            else:
                self._holders[block_hash] = tuple(each for each in holders if each != replica)

    def forget_all(self, replica: Replica) -> None:
        """Take notice that a replica's cache is empty."""
        self.forget(replica, list(self._holders))

    def _longest_match(self, hashes: Sequence[bytes]) -> tuple[tuple[Replica, ...], int]:
        """Return the replicas that hold the longest prefix, and its number of blocks."""
        longest: tuple[Replica, ...] = ()
        for num_blocks, block_hash in enumerate(hashes):
            holders = self._holders.get(block_hash, ())
            if num_blocks and holders != longest:
                holders = tuple(each for each in holders if each in longest)
            if not holders:
                return longest, num_blocks
            longest = holders
        return longest, len(hashes)

    def _is_unbalanced(self) -> bool:
        lowest, highest = min(self.loads.values()), max(self.loads.values())
        return highest - lowest > IMBALANCE and highest > IMBALANCE_FACTOR * lowest

    def _remember(self, hashes: Sequence[bytes], replica: Replica) -> None:
        alone = (replica,)  # one tuple for all blocks that no other replica holds
        for block_hash in reversed(hashes):  # the end of a prefix is forgotten before its beginning
            holders = self._holders.get(block_hash, alone)
            self._holders[block_hash] = holders if replica in holders else (*holders, replica)
            self._holders.move_to_end(block_hash)
        while len(self._holders) > self._num_remembered:
            self._holders.popitem(last=False)


ROUTERS: dict[str, type[Router[Any]]] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "prefix-aware": PrefixAware,
}
"""Classes of routers, by their names in options."""
