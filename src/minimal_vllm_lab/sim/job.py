"""What is asked of the simulated engines: prompts, and how long each answer will be."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.request import Request

if TYPE_CHECKING:
    from array import array

FIRST_OUTPUT_TOKEN = 1 << 30
"""Request ``i`` answers with the token ``FIRST_OUTPUT_TOKEN + i`` again and again: no vocabulary
reaches so far, so that no two requests ever share what they generated."""

FollowUp = Callable[["array[int]", float], "Job | None"]
"""Given all tokens, prompt and answer, and the time of the last: what is sent next, if anything."""


@dataclass(slots=True)
class Job:
    """A request to come."""

    arrival: float
    """Seconds since the start."""
    prompt: "array[int]"
    num_output_tokens: int
    follow_up: FollowUp | None = None


@dataclass(eq=False, slots=True)
class SimulatedRequest(Request):
    """A request of the engine's, with what the simulation notes about it."""

    arrived: float = 0.0
    output_token: int = 0
    first_token_at: float | None = None
    stalled_since: float | None = None
    """When it got its last token, if it was preempted since."""
    asleep_since: int | None = None
    """While it sleeps: the first step that it sleeps through (see ``LazyScheduler``)."""
    wakes_at: int = 0
    """The first step after its sleep."""
    ends_at: int = 0
    """The step that will give it its last token, unless it is preempted."""
    follow_up: FollowUp | None = None


def make_request(job: Job, number: int) -> SimulatedRequest:
    """The request that a job becomes, ``number`` requests after the first."""
    return SimulatedRequest(
        request_id=str(number),
        token_ids=job.prompt[:],  # it grows by the answer
        num_prompt_tokens=len(job.prompt),
        params=_params(job.num_output_tokens),
        arrival=number + 1,  # as the engine counts
        arrived=job.arrival,
        output_token=FIRST_OUTPUT_TOKEN + number,
        follow_up=job.follow_up,
    )


def simulated(request: Request) -> SimulatedRequest:
    """The same request; a simulated scheduler is given no others."""
    return cast("SimulatedRequest", request)


@lru_cache(maxsize=4096)  # validating them again for each request would take most of its time
def _params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True)
