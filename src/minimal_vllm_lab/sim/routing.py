"""Routers: choose the replica that serves a request."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from itertools import count

from minimal_vllm.cache.prefix_hash import extend_block_hashes
from minimal_vllm_lab.sim.job import SimulatedRequest

MIN_MATCH = 0.3
"""Minimum fraction of a prompt that a remembered prefix must cover to decide the route. The values
of this and the next two constants are the defaults of vLLM's and SGLang's routers."""
IMBALANCE_FACTOR = 1.5
"""Ratio of the highest to the lowest load above which loads may count as unbalanced."""
IMBALANCE = 64
"""Difference of the highest and the lowest load, in requests, above which they may do so."""


class Router(ABC):
    """Base class of routers, which choose a replica for each request.

    A router knows only which requests were sent and which were answered.

    Args:
        num_replicas: Number of replicas.
        block_size: Tokens per KV block.
    """

    def __init__(self, num_replicas: int, block_size: int) -> None:
        self.loads = [0] * num_replicas
        """Number of unanswered requests per replica; the cluster updates it."""
        self._block_size = block_size

    @abstractmethod
    def choose(self, request: SimulatedRequest) -> int:
        """Return the index of the replica that serves a request."""


class RoundRobin(Router):
    """Router that chooses one replica after the other."""

    def __init__(self, num_replicas: int, block_size: int) -> None:
        super().__init__(num_replicas, block_size)
        self._counter = count()

    def choose(self, request: SimulatedRequest) -> int:  # noqa: ARG002 - all requests are alike
        """Return the index of the next replica."""
        return next(self._counter) % len(self.loads)


class LeastLoaded(Router):
    """Router that chooses the replica with the fewest unanswered requests, the first of several."""

    def choose(self, request: SimulatedRequest) -> int:  # noqa: ARG002
        """Return the index of the first replica with the lowest load."""
        return self.loads.index(min(self.loads))


class PrefixAware(LeastLoaded):
    """Router that prefers the replica to which the longest prefix of the prompt was sent before.

    It follows the ``cache_aware`` policy of vLLM's and SGLang's routers. The prefix decides if it
    covers at least ``MIN_MATCH`` of the prompt and the loads are balanced. Otherwise the least
    loaded replica is chosen. Loads are unbalanced if the highest exceeds the lowest by more than
    ``IMBALANCE`` requests *and* by more than a factor of ``IMBALANCE_FACTOR``.

    The router remembers to which replica it last sent each block. It does not see the replicas'
    pools, which may have evicted the block.

    Args:
        num_replicas: Number of replicas.
        block_size: Tokens per KV block.
        num_remembered: Maximum number of blocks to remember.
    """

    def __init__(self, num_replicas: int, block_size: int, num_remembered: int = 1_000_000) -> None:
        super().__init__(num_replicas, block_size)
        self._num_remembered = num_remembered
        self._replica_of: OrderedDict[bytes, int] = OrderedDict()

    def choose(self, request: SimulatedRequest) -> int:
        """Return the index of a replica, and remember the choice."""
        # The scheduler needs the same hashes. It finds them in the request and does not redo them.
        extend_block_hashes(request.block_hashes, request.token_ids, self._block_size)
        replica, num_tokens = self._longest_match(request.block_hashes)
        if num_tokens < MIN_MATCH * request.num_tokens or self._is_unbalanced():
            replica = super().choose(request)
        self._remember(request.block_hashes, replica)
        return replica

    def _longest_match(self, hashes: list[bytes]) -> tuple[int, int]:
        replica, num_blocks = 0, 0
        for block_hash in hashes:
            found = self._replica_of.get(block_hash)
            if found is None:
                break
            replica, num_blocks = found, num_blocks + 1
        return replica, num_blocks * self._block_size

    def _is_unbalanced(self) -> bool:
        lowest, highest = min(self.loads), max(self.loads)
        return highest - lowest > IMBALANCE and highest > IMBALANCE_FACTOR * lowest

    def _remember(self, hashes: list[bytes], replica: int) -> None:
        for block_hash in reversed(hashes):  # the end of a prefix is forgotten before its beginning
            self._replica_of[block_hash] = replica
            self._replica_of.move_to_end(block_hash)
        while len(self._replica_of) > self._num_remembered:
            self._replica_of.popitem(last=False)


ROUTERS: dict[str, type[Router]] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "prefix-aware": PrefixAware,
}
"""Classes of routers, by the values of ``FleetConfig.routing``."""
