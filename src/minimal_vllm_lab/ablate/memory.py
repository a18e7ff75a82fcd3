"""Use of the KV cache, in the categories of figure 2 of the PagedAttention paper.

Kwon et al., *Efficient Memory Management for Large Language Model Serving with PagedAttention*,
SOSP 2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from minimal_vllm.cache.layer_groups import NO_BLOCK
from minimal_vllm.engine.scheduler_interface import SchedulerInterface
from minimal_vllm.step.request import Request
from minimal_vllm_lab.bench.statistics import Fields

SAMPLE_INTERVAL = 0.02
"""Minimum time between two samples, in seconds."""


@dataclass(slots=True)
class Slots:
    """Use of the pool's slots, each of which holds one token.

    A value is a number of slots at one moment, or slots times seconds over a period.
    """

    tokens: float = 0.0
    """Slots that hold a token of a running request. A slot shared by several requests counts
    once."""
    reserved: float = 0.0
    """Slots that will hold a token before their request ends."""
    never_used: float = 0.0
    """Slots that a request holds but will never use: internal fragmentation."""
    free: float = 0.0
    """Slots that no request holds. If requests wait for memory, these slots are in pieces too
    small, or held back for running requests."""

    @property
    def held(self) -> float:
        """Number of slots that requests hold."""
        return self.tokens + self.reserved + self.never_used

    def add(self, now: "Slots", seconds: float) -> None:
        """Add ``now``, multiplied by the seconds for which it lasted."""
        self.tokens += now.tokens * seconds
        self.reserved += now.reserved * seconds
        self.never_used += now.never_used * seconds
        self.free += now.free * seconds

    def shares(self) -> dict[str, float]:
        """Return each category's fraction of the pool, by name; empty if nothing was added."""
        total = self.held + self.free
        names = ("tokens", "reserved", "never_used", "free")
        return {name: getattr(self, name) / total for name in names} if total else {}


@dataclass(frozen=True, slots=True)
class Sample:
    """State of the memory at one moment."""

    at: float
    """Time in seconds."""
    slots: Slots
    """Use of the slots."""
    num_running: int
    """Number of running requests."""
    is_short: bool
    """True if requests wait for memory."""


class MemoryWatch:
    """Recorder of memory use, which takes samples of a scheduler between steps."""

    def __init__(self) -> None:
        self._peak_blocks = 0
        self._always, self._while_waiting = Slots(), Slots()
        self._running_seconds = self._seconds = 0.0
        self._last: Sample | None = None

    def sample(self, scheduler: SchedulerInterface, now: float) -> None:
        """Take a sample at the time ``now``, in seconds, unless one was taken just before.

        A sample counts until the next one. The beginning and the end of idle times are always
        sampled.
        """
        last = self._last
        is_soon = last is not None and now - last.at < SAMPLE_INTERVAL
        if last and is_soon and last.num_running and scheduler.running:
            return
        if last:
            self._add(last, now - last.at)
        block_size, num_blocks = scheduler.config.block_size, scheduler.pool.num_blocks
        num_groups = len(scheduler.config.windows)
        slots = count_slots(scheduler.running, block_size, num_blocks, num_groups)
        self._last = Sample(now, slots, len(scheduler.running), _waits_for_memory(scheduler))
        self._peak_blocks = max(self._peak_blocks, round(slots.held) // block_size)

    def _add(self, sample: "Sample", seconds: float) -> None:
        self._seconds += seconds
        self._running_seconds += sample.num_running * seconds
        self._always.add(sample.slots, seconds)
        if sample.is_short:
            self._while_waiting.add(sample.slots, seconds)

    def result(self) -> Fields:
        """Return the result fields.

        ``peak_blocks`` is the maximum number of held blocks, and ``mean_running`` the mean number
        of running requests. ``kv_waste`` is the fraction of held slots without a token.
        ``kv_shares`` is the use of the whole pool while requests waited for memory.
        """
        held = self._always.held
        return {
            "peak_blocks": self._peak_blocks,
            "mean_running": self._running_seconds / self._seconds if self._seconds else None,
            "kv_waste": 1 - self._always.tokens / held if held else None,
            "kv_shares": self._while_waiting.shares(),
        }


def _waits_for_memory(scheduler: SchedulerInterface) -> bool:
    """Return whether requests wait for memory.

    While a prompt is being computed, they wait for the token budget instead.
    """
    in_prompt = any(request.num_uncomputed_tokens > 1 for request in scheduler.running)
    return bool(scheduler.waiting) and not in_prompt


def count_slots(
    running: Sequence[Request], block_size: int, num_blocks: int, num_groups: int = 1
) -> Slots:
    """Return the current use of the slots.

    Args:
        running: running requests.
        block_size: tokens per block.
        num_blocks: number of blocks in the pool.
        num_groups: number of groups of layers; a token has a slot in each.
    """
    blocks: set[int] = set()
    reserved = never_used = 0
    for request in running:
        blocks.update(block for block in request.block_table if block != NO_BLOCK)
        capacity = len(request.block_table) // num_groups * block_size
        final_use = min(capacity, request.max_num_tokens)
        reserved += (final_use - request.num_computed_tokens) * num_groups
        never_used += (capacity - final_use) * num_groups
    held = len(blocks) * block_size
    return Slots(
        # Only full blocks are shared, so no reserved or unused slot was subtracted twice.
        tokens=held - reserved - never_used,
        reserved=reserved,
        never_used=never_used,
        free=num_blocks * block_size - held,
    )
