"""Policies of older engines: each is the engine's own policy without one idea."""

from collections.abc import Iterable, Iterator, Sequence

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import EvictionStrategy
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request


class StaticBatching(Scheduler):
    """Scheduler without continuous batching: new requests wait until the whole batch is done.

    A request that ends is not replaced. This is kinder than the systems that Orca was compared
    with: an answer is returned as soon as it is complete, and nothing is computed for it after
    that.
    """

    _is_open = True
    """True while the batch may still grow: prompts beyond one step's budget take several steps."""

    def admit_waiting(self, plan: Plan, budget: int) -> None:
        """Admit requests only while the batch may still grow."""
        if self._is_open or not self.running:
            super().admit_waiting(plan, budget)
            num_tokens = sum(entry.num_new for entry in plan.scheduled)
            left = self.config.max_num_batched_tokens - num_tokens
            self._is_open = left < self.config.min_chunk


class Reservation(Scheduler):
    """Scheduler without preemption: a request waits until all blocks it may need are available.

    Blocks are still allocated as they are needed, and prefixes are still shared.
    """

    def has_room_for(self, request: Request, cached: list[int]) -> bool:
        """Return whether all blocks that ``request`` will ever need are free."""
        to_come = sum(self._num_blocks_to_come(each) for each in self.running)
        missing = self.config.max_blocks_for(request.max_num_tokens)
        return missing - self.blocks.num_in_use(cached) + to_come <= self.pool.num_free

    def _num_blocks_to_come(self, request: Request) -> int:
        most = self.config.max_blocks_for(request.max_num_tokens)
        return most - len(self.blocks.held(request.block_table))


class ContiguousPool(BlockPool):
    """Block pool without paging: each allocation is a run of adjacent blocks, by first fit.

    It is meant for an engine without prefix caching, because the blocks of a run can't be shared
    individually.
    """

    def __init__(self, num_blocks: int, eviction: EvictionStrategy) -> None:
        super().__init__(num_blocks, eviction)
        self._gaps = [range(num_blocks)]

    @property
    def num_free(self) -> int:
        """Number of blocks that ``allocate`` could return now: the width of the widest gap."""
        return max(map(len, self._gaps), default=0)

    def allocate(self, count: int) -> list[int]:
        """Allocate ``count`` adjacent blocks from the first gap that is wide enough.

        Raises:
            ValueError: no gap is wide enough.
        """
        gap = next((gap for gap in self._gaps if len(gap) >= count), None)
        if gap is None:
            raise ValueError(
                f"{count} adjacent blocks wanted, but the widest gap has {self.num_free}"
            )
        blocks = list(gap[:count])
        for block in blocks:
            self._references[block] = 1
        self._set_free(set(self._free) - set(blocks))
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Return the blocks to the pool."""
        super().release(blocks)
        self._set_free(self._free)

    def _set_free(self, blocks: Iterable[int]) -> None:
        self._free = sorted(blocks)
        self._gaps = list(_gaps(self._free))


def _gaps(free: Sequence[int]) -> Iterator[range]:
    """Yield the runs of consecutive numbers in an ascending sequence."""
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
    """Scheduler without paging: each request is given room for ``max_model_len`` tokens at once.

    The room is one run of adjacent blocks, so the engine needs a ``ContiguousPool``. This is Orca
    (Max) in figure 2 of the PagedAttention paper.
    """

    def _num_reserved_tokens(self, request: Request) -> int:  # noqa: ARG002 - subclasses use it
        return self.config.max_model_len

    def num_missing_blocks(self, request: Request, num_new: int) -> int:  # noqa: ARG002
        """Return the number of blocks still to be allocated for ``request``: all, or none."""
        reserved = self.config.blocks_for(self._num_reserved_tokens(request))
        return reserved * self.blocks.num_groups - len(request.block_table)

    def has_room_for(self, request: Request, cached: list[int]) -> bool:  # noqa: ARG002
        """Return whether a free gap is wide enough for all blocks of ``request``."""
        return self.num_missing_blocks(request, 0) <= self.pool.num_free


class DeclaredReserved(LongestReserved):
    """Scheduler without paging that reserves each request's own ``max_tokens``.

    This is Orca (Oracle) in the same figure, if every answer becomes as long as declared.
    """

    def _num_reserved_tokens(self, request: Request) -> int:
        return request.max_num_tokens
