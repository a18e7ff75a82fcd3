"""How engines decided before: each policy is the engine's own, but for one idea."""

from collections.abc import Iterable, Iterator, Sequence

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import EvictionStrategy
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request


class StaticBatching(Scheduler):
    """No continuous batching: who comes waits until the whole batch is done.

    Nobody takes the place of a request that has ended. Other than in the systems that Orca was
    compared with, its answer need not wait for the others, and nothing is computed in its place.
    """

    _is_open = True
    """Whether the batch is still put together: the prompts may not fit into one step's budget."""

    def admit_waiting(self, plan: Plan, budget: int) -> None:
        """Admit requests only while the batch is being put together."""
        if self._is_open or not self.running:
            super().admit_waiting(plan, budget)
            num_tokens = sum(entry.num_new for entry in plan.scheduled)
            self._is_open = num_tokens == self.config.max_num_batched_tokens


class Reservation(Scheduler):
    """No preemption: a request waits until all the blocks that it may ever need are spoken for.

    Blocks are still handed out as they are needed, and prefixes shared.
    """

    def has_room_for(self, request: Request, cached: list[int]) -> bool:
        """Return whether all blocks are free that ``request`` will ever need."""
        to_come = sum(self._num_blocks_to_come(each) for each in self.running)
        missing = self.config.blocks_for(request.max_num_tokens) - len(cached)
        taken_by_sharing = sum(self.pool.is_evictable(block) for block in cached)
        return missing + taken_by_sharing + to_come <= self.pool.num_free

    def _num_blocks_to_come(self, request: Request) -> int:
        return self.config.blocks_for(request.max_num_tokens) - len(request.block_table)


class ContiguousPool(BlockPool):
    """No paging: what one ``allocate`` hands out are neighbours, the first that are free.

    For an engine without prefix caching: neighbours can't be shared one by one.
    """

    def __init__(self, num_blocks: int, eviction: EvictionStrategy) -> None:
        super().__init__(num_blocks, eviction)
        self._gaps = [range(num_blocks)]

    @property
    def num_free(self) -> int:
        """How many blocks ``allocate`` could hand out now: those of the widest gap."""
        return max(map(len, self._gaps), default=0)

    def allocate(self, count: int) -> list[int]:
        """Take the first ``count`` neighbours.

        Raises:
            ValueError: no gap is so wide.
        """
        gap = next((gap for gap in self._gaps if len(gap) >= count), None)
        if gap is None:
            raise ValueError(f"{count} neighbours wanted, but no gap has more than {self.num_free}")
        blocks = list(gap[:count])
        for block in blocks:
            self._references[block] = 1
        self._set_free(set(self._free) - set(blocks))
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Give the blocks back."""
        super().release(blocks)
        self._set_free(self._free)

    def _set_free(self, blocks: Iterable[int]) -> None:
        self._free = sorted(blocks)
        self._gaps = list(_gaps(self._free))


def _gaps(free: Sequence[int]) -> Iterator[range]:
    """The runs of neighbours among ascending numbers."""
    if not free:
        return
    first = last = free[0]
    for block in free[1:]:
        if block != last + 1:
            yield range(first, last + 1)
            first = block
        last = block
    yield range(first, last + 1)


class LongestReserved(Scheduler):
    """No paging: each request gets room for ``max_model_len`` tokens at once, in one piece.

    Orca (Max) in figure 2 of the PagedAttention paper. Needs a ``ContiguousPool``.
    """

    def _num_reserved_tokens(self, request: Request) -> int:  # noqa: ARG002 - but others do
        return self.config.max_model_len

    def num_missing_blocks(self, request: Request, num_new: int) -> int:  # noqa: ARG002
        """Return the number of blocks to reserve for ``request`` that it does not have yet."""
        reserved = self.config.blocks_for(self._num_reserved_tokens(request))
        return reserved - len(request.block_table)

    def has_room_for(self, request: Request, cached: list[int]) -> bool:  # noqa: ARG002
        """Return whether the blocks to reserve for ``request`` are free."""
        return self.num_missing_blocks(request, 0) <= self.pool.num_free


class DeclaredReserved(LongestReserved):
    """No paging, but each request's own ``max_tokens`` is what is reserved.

    Orca (Oracle) in the same figure, if all requests become as long as they declare.
    """

    def _num_reserved_tokens(self, request: Request) -> int:
        return request.max_num_tokens
