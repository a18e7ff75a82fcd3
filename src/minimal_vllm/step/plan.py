"""The plan of a step: which requests compute which of their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

from minimal_vllm.step.request import Request

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@overload
def is_decode(num_new: int) -> bool: ...
@overload
def is_decode(num_new: "npt.NDArray[np.int64]") -> "npt.NDArray[np.bool_]": ...
def is_decode(num_new: "int | npt.NDArray[np.int64]") -> "bool | npt.NDArray[np.bool_]":
    """Return whether a request that computes ``num_new`` tokens decodes: if it is a single token.

    This is the only definition of decoding; the runner's graphs and the attention kernels use it.
    For an array of numbers, the result is an array.
    """
    return num_new == 1


@dataclass(slots=True)
class ScheduledRequest:
    """One request's part of a step: compute ``num_new`` of its tokens, from ``start`` on."""

    request: Request
    start: int
    """Position of the first token to compute."""
    num_new: int
    """Number of tokens to compute; at least 1."""
    num_logits: int
    """Number of tokens to sample at most: the last ``num_logits`` of the computed tokens give
    logits.

    - 0: a chunk of a prompt that is not its last chunk.
    - 1: the counter catches up with the list, and the logits give the next token.
    - 1 + k: the last k computed tokens are guesses at the next ones; the logits tell how many of
      them are right, and give one more token.
    """
    cached_blocks: Sequence[int] = ()
    """Blocks found in the prefix cache, if the request is admitted in this step. The block table
    begins with them."""
    new_blocks: Sequence[int] = ()
    """Blocks that were then appended to the block table."""
    guesses: Sequence[int] = ()
    """Guesses at the tokens that follow the request's list; the step computes them too."""
    follows_guesses: bool = False
    """Whether the step before, still in flight, has guesses for the request. Then ``start`` is as
    if all of them held; it is corrected when the scheduler learns how many do."""
    num_freed_blocks: int = 0
    """Number of blocks, the last ones, that were released because only wrong guesses were there."""
    passed_blocks: Sequence[int] = ()
    """Blocks that were released after the step, because the layers' windows have passed them."""


@dataclass(slots=True)
class Plan:
    """Plan of one step. The requests' counters already include its tokens."""

    scheduled: list[ScheduledRequest] = field(default_factory=list)
    """Tokens to compute: first those of the running requests, then those of the admitted ones."""
    admitted: list[Request] = field(default_factory=list)
    """Waiting requests that begin to run in this step."""
    preempted: list[Request] = field(default_factory=list)
    """Running requests that lost all their blocks and wait again."""
    evicted: list[int] = field(default_factory=list)
    """Cached blocks whose content was dropped, because the step writes to them."""

    @property
    def is_steady_decode(self) -> bool:
        """True if each scheduled request computes its newest token alone, and samples the next."""
        return all(is_decode(entry.num_new) and entry.num_logits for entry in self.scheduled)

    @property
    def sampling(self) -> list[Request]:
        """Requests that sample in this step, in order."""
        return [entry.request for entry in self.scheduled if entry.num_logits]
