"""The plan of a step: which requests compute which of their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from minimal_vllm.step.request import Request


@dataclass(slots=True)
class ScheduledRequest:
    """Compute ``num_new`` tokens of ``request``, beginning with token ``start``."""

    request: Request
    start: int
    num_new: int
    samples: bool
    """Whether the counter catches up with the tokens, so that the logits give the next one."""
    cached_blocks: Sequence[int] = ()
    """Found in the prefix cache, if it was admitted in this step: its block table's beginning."""
    new_blocks: Sequence[int] = ()
    """What its block table was then extended by."""


@dataclass(slots=True)
class Plan:
    """What one step does. Once made it is carried out: the requests' counters include it."""

    scheduled: list[ScheduledRequest] = field(default_factory=list)
    """What is computed: the running requests, then the admitted ones."""
    admitted: list[Request] = field(default_factory=list)
    """Who was let in from the queue."""
    preempted: list[Request] = field(default_factory=list)
    """Who lost all blocks, and waits again."""
    evicted: list[int] = field(default_factory=list)
    """Blocks whose cached content was forgotten, to be written anew."""

    @property
    def is_steady_decode(self) -> bool:
        """Whether each scheduled request computes its one newest token, and samples the next."""
        return all(entry.num_new == 1 and entry.samples for entry in self.scheduled)

    @property
    def sampling(self) -> list[Request]:
        """The requests whose counters catch up, in order: each gets a token."""
        return [entry.request for entry in self.scheduled if entry.samples]
