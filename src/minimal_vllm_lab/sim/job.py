"""Jobs: requests that will be sent to simulated engines, with the length of each answer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.request import Request

if TYPE_CHECKING:
    from array import array

FIRST_OUTPUT_TOKEN = 1 << 30
"""First of the token ids that answers are made of.

The answer of request ``i`` repeats the token ``FIRST_OUTPUT_TOKEN + i``. No vocabulary is that
large, so no two requests share the tokens that they generate.
"""

FollowUp = Callable[["array[int]", float], "Job | None"]
"""Function that makes the next request of a conversation, or returns None after the last.

It is given all tokens so far (prompt and answer), and the time of the last one in seconds.
"""


@dataclass(slots=True)
class Job:
    """Request that will arrive at a given time."""

    arrival: float
    """Arrival time in seconds since the start."""
    prompt: "array[int]"
    """Token ids."""
    num_output_tokens: int
    follow_up: FollowUp | None = None
    """Makes the next request of the conversation. Default: this request has no successor."""


@dataclass(eq=False, slots=True)
class SimulatedRequest(Request):
    """Request of the engine, with the state that the simulation keeps about it.

    Times are in simulated seconds since the start. Steps are counted from 0, per replica.
    """

    arrived: float = 0.0
    """Arrival time."""
    output_token: int = 0
    """Token id that the answer repeats."""
    first_token_at: float | None = None
    """Time of the first output token; None before it."""
    stalled_since: float | None = None
    """Time of the last token before a preemption; None if no token is delayed by one."""
    asleep_since: int | None = None
    """First step that the request sleeps through (see ``LazyScheduler``); None while it is
    awake."""
    wakes_at: int = 0
    """First step after its sleep."""
    ends_at: int = 0
    """Step that will generate its last token, unless the request is preempted."""
    follow_up: FollowUp | None = None
    """Makes the next request of the conversation."""


def make_request(job: Job, number: int) -> SimulatedRequest:
    """Return the request for a job. ``number`` counts requests from 0."""
    return SimulatedRequest(
        request_id=str(number),
        token_ids=job.prompt[:],  # a copy, because the answer is appended to it
        num_prompt_tokens=len(job.prompt),
        params=_params(job.num_output_tokens),
        arrival=number + 1,  # the engine counts from 1
        arrived=job.arrival,
        output_token=FIRST_OUTPUT_TOKEN + number,
        follow_up=job.follow_up,
    )


def simulated(request: Request) -> SimulatedRequest:
    """Return the same request as a ``SimulatedRequest``: a simulated scheduler holds no others."""
    return cast("SimulatedRequest", request)


@lru_cache(maxsize=4096)  # validation would take most of the time to make a request
def _params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True)
