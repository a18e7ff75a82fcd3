"""What the KV cache is filled with, as figure 2 of the PagedAttention paper counts it.

Kwon et al., *Efficient Memory Management for Large Language Model Serving with PagedAttention*,
SOSP 2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from minimal_vllm.engine.scheduler_interface import SchedulerInterface
from minimal_vllm.step.request import Request
from minimal_vllm_lab.bench.statistics import Fields

SECONDS_BETWEEN_LOOKS = 0.02


@dataclass(slots=True)
class Slots:
    """How the slots of the pool are used, in slots times seconds."""

    tokens: float = 0.0
    """They hold a token of a running request; those that several share count once."""
    reserved: float = 0.0
    """They will, before it ends."""
    never_used: float = 0.0
    """A request has them, and will not need them: internal fragmentation."""
    free: float = 0.0
    """Nobody has them. If somebody waits for some, they are in pieces too small, or held back for
    those that run."""

    @property
    def held(self) -> float:
        """Those that requests have."""
        return self.tokens + self.reserved + self.never_used

    def add(self, now: "Slots", seconds: float) -> None:
        """It was so for some time."""
        self.tokens += now.tokens * seconds
        self.reserved += now.reserved * seconds
        self.never_used += now.never_used * seconds
        self.free += now.free * seconds

    def shares(self) -> dict[str, float]:
        """Of the whole pool, by name; nothing if there was no time."""
        total = self.held + self.free
        names = ("tokens", "reserved", "never_used", "free")
        return {name: getattr(self, name) / total for name in names} if total else {}


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at a moment."""

    at: float
    slots: Slots
    num_running: int
    waits: bool
    """Whether anybody waits for memory."""


class MemoryWatch:
    """Looks at a scheduler's books now and then, between two steps."""

    def __init__(self) -> None:
        self._peak_blocks = 0
        self._always, self._while_waiting = Slots(), Slots()
        self._running_seconds = self._seconds = 0.0
        self._last: Look | None = None

    def look(self, scheduler: SchedulerInterface, now: float) -> None:
        """Take in how it is, unless that was just done; ``now`` is in seconds.

        It counts as being so until the next look. The beginning and the end of idleness are never
        missed.
        """
        last = self._last
        is_soon = last is not None and now - last.at < SECONDS_BETWEEN_LOOKS
        if last and is_soon and last.num_running and scheduler.running:
            return
        if last:
            self._add(last, now - last.at)
        block_size, num_blocks = scheduler.config.block_size, scheduler.pool.num_blocks
        slots = count_slots(scheduler.running, block_size, num_blocks)
        self._last = Look(now, slots, len(scheduler.running), _waits_for_memory(scheduler))
        self._peak_blocks = max(self._peak_blocks, round(slots.held) // block_size)

    def _add(self, look: "Look", seconds: float) -> None:
        self._seconds += seconds
        self._running_seconds += look.num_running * seconds
        self._always.add(look.slots, seconds)
        if look.waits:
            self._while_waiting.add(look.slots, seconds)

    def result(self) -> Fields:
        """What it saw.

        ``kv_waste`` is the share without a token of the slots that requests had; ``kv_shares`` is
        how the whole pool was used while somebody waited for memory.
        """
        held = self._always.held
        return {
            "peak_blocks": self._peak_blocks,
            "mean_running": self._running_seconds / self._seconds if self._seconds else None,
            "kv_waste": 1 - self._always.tokens / held if held else None,
            "kv_shares": self._while_waiting.shares(),
        }


def _waits_for_memory(scheduler: SchedulerInterface) -> bool:
    """Not if a prompt is still being computed: then it is the budget that others wait for."""
    in_prompt = any(request.num_uncomputed_tokens > 1 for request in scheduler.running)
    return bool(scheduler.waiting) and not in_prompt


def count_slots(running: Sequence[Request], block_size: int, num_blocks: int) -> Slots:
    """How the slots are used at the moment."""
    blocks: set[int] = set()
    reserved = never_used = 0
    for request in running:
        blocks.update(request.block_table)
        capacity = len(request.block_table) * block_size
        used_in_the_end = min(capacity, request.max_num_tokens)
        reserved += used_in_the_end - request.num_computed_tokens
        never_used += capacity - used_in_the_end
    held = len(blocks) * block_size
    return Slots(
        tokens=held - reserved - never_used,  # unfilled blocks are not shared
        reserved=reserved,
        never_used=never_used,
        free=num_blocks * block_size - held,
    )
