"""Which replica a request goes to."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from itertools import count

from minimal_vllm.cache.prefix_hash import extend_block_hashes
from minimal_vllm_lab.sim.job import SimulatedRequest

LEAST_SHARE = 0.3
IMBALANCE_FACTOR = 1.5
IMBALANCE = 64
"""When prefixes count less than balance; the defaults of vLLM's and SGLang's routers."""


class Router(ABC):
    """Chooses among replicas by what a router can know: requests sent, and requests answered.

    Args:
        num_replicas: how many there are.
        block_size: tokens per KV block.
    """

    def __init__(self, num_replicas: int, block_size: int) -> None:
        self.loads = [0] * num_replicas
        """Unanswered requests of each replica; the cluster keeps them."""
        self._block_size = block_size

    @abstractmethod
    def choose(self, request: SimulatedRequest) -> int:
        """The index of a replica."""


class RoundRobin(Router):
    """One after the other."""

    def __init__(self, num_replicas: int, block_size: int) -> None:
        super().__init__(num_replicas, block_size)
        self._turns = count()

    def choose(self, request: SimulatedRequest) -> int:  # noqa: ARG002 - all are the same to it
        """The next one."""
        return next(self._turns) % len(self.loads)


class LeastLoaded(Router):
    """The one with the fewest unanswered requests; among equals the first."""

    def choose(self, request: SimulatedRequest) -> int:  # noqa: ARG002
        """The first with the least load."""
        return self.loads.index(min(self.loads))


class PrefixAware(LeastLoaded):
    """The one that was sent the longest prefix of this prompt; else the least loaded.

    As the ``cache_aware`` policy of vLLM's and SGLang's routers: prefixes count if they are at
    least ``LEAST_SHARE`` of the prompt, and no replica has ``IMBALANCE`` requests *and*
    ``IMBALANCE_FACTOR`` times more than another. The router remembers which replica it sent which
    block to last; it doesn't look into their pools, which may have evicted it.
    """

    def __init__(self, num_replicas: int, block_size: int, num_remembered: int = 1_000_000) -> None:
        super().__init__(num_replicas, block_size)
        self._num_remembered = num_remembered
        self._replica_of: OrderedDict[bytes, int] = OrderedDict()

    def choose(self, request: SimulatedRequest) -> int:
        """Also remember the choice."""
        # The scheduler needs the same hashes, and finds them done.
        extend_block_hashes(request.block_hashes, request.token_ids, self._block_size)
        replica, num_tokens = self._longest_match(request.block_hashes)
        if num_tokens < LEAST_SHARE * request.num_tokens or self._is_unbalanced():
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
        least, most = min(self.loads), max(self.loads)
        return most - least > IMBALANCE and most > IMBALANCE_FACTOR * least

    def _remember(self, hashes: list[bytes], replica: int) -> None:
        for block_hash in reversed(hashes):  # a prefix's tail is forgotten before its head
            self._replica_of[block_hash] = replica
            self._replica_of.move_to_end(block_hash)
        while len(self._replica_of) > self._num_remembered:
            self._replica_of.popitem(last=False)


ROUTERS: dict[str, type[Router]] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "prefix-aware": PrefixAware,
}
