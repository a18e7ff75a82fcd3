"""Random and hand-written histories for the scheduler check."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from minimal_vllm.config import SchedulerConfig
from minimal_vllm_lab.check.search import long_lists

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


@dataclass(frozen=True, slots=True)
class Event:
    """One event in the life of a scheduler.

    Attributes:
        kind: ``"add"``, ``"step"``, ``"abort"``, or ``"no token"``: a step in which no token can
            be sampled for one request.
        prompt: token ids of the request to add.
        max_tokens: maximum number of output tokens of the request to add.
        number: priority of the request to add, or index of the request to abort.
        option: what is special about the request to add: ``"prompt_logprobs"``, ``"grammar"``,
            ``"stop_token"``, ``"min_tokens"``, or nothing.
    """

    kind: str
    prompt: tuple[int, ...]
    max_tokens: int
    number: int
    option: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """The configuration of a small engine, and the events to apply to it."""

    num_blocks: int
    config: SchedulerConfig
    events: tuple[Event, ...]
    runs_ahead: bool = False
    """Whether each step is planned while the one before it still runs."""


OPTIONS = ("prompt_logprobs", "grammar", "stop_token", "min_tokens")


def known_cases(chunked: bool) -> list[Case]:
    """Return the smallest cases in which the most common mistakes show.

    Args:
        chunked: whether prompts may be split.
    """
    one, two, long = (1,), (1, 2, 3), (1, 2, 3, 4, 5, 6)
    step = Event("step", one, 1, 0)
    small = SchedulerConfig(max_model_len=8, max_num_batched_tokens=4, max_num_seqs=2, block_size=2)
    urgent = replace(small, max_num_batched_tokens=3, policy="priority")
    cases = [
        # A third request waits, because max_num_seqs are running.
        Case(8, small, (_add(one, 1), _add(one, 4), _add(two, 2))),
        # Two requests grow until the blocks run out.
        Case(4, small, (_add(two, 5), _add(one, 5))),
        # A long prompt is served before a request that decodes.
        Case(8, urgent, (_add(one, 6, 1), step, _add(long, 2, 0))),
        # Prompts share a prefix: one after the other, and two in the same step.
        Case(8, small, (_add(long, 1), step, step, _add(long, 1), _add(long, 2))),
        # One request is aborted while it runs, another while it waits.
        Case(8, small, (_add(two, 4), _add(one, 4), _add(two, 4), step, _abort(0), _abort(2))),
        # A step is planned while the first token of a request is pending, up to its last one.
        Case(8, small, (_add(two, 4), step, step, step), runs_ahead=True),
        # A prompt is cached, and asked for again: for its tokens' log-probabilities, and not.
        Case(8, small, (_add(long, 1), step, step, _add(long, 1, option="prompt_logprobs"))),
        # A request ends by its grammar, one at a stop token, and one not before min_tokens.
        *(Case(8, small, (_add(one, 6, option=each),)) for each in OPTIONS),
        # No token can be sampled for one of two requests.
        Case(8, small, (_add(two, 4), _add(one, 4), step, Event("no token", (), 1, 0))),
    ]
    return cases if chunked else [_unchunked(case) for case in cases]


def _unchunked(case: Case) -> Case:
    budget = max(case.config.max_num_batched_tokens, case.config.max_model_len)
    whole = replace(case.config, enable_chunked_prefill=False, max_num_batched_tokens=budget)
    return replace(case, config=whole)


def _add(prompt: tuple[int, ...], max_tokens: int, priority: int = 0, option: str = "") -> Event:
    return Event("add", prompt, max_tokens, priority, option)


def _abort(index: int) -> Event:
    return Event("abort", (), 1, index)


def random_cases(chunked: bool) -> "SearchStrategy[Case]":
    """Return a Hypothesis strategy for cases with small pools, budgets and prompts.

    Args:
        chunked: whether prompts may be split.
    """
    from hypothesis import strategies as st

    # sampled_from, because integers() and booleans() prefer small values: little would happen.
    prompts = [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4, 5, 6), (2, 1), (1, 2, 3, 5, 5, 5, 1, 2, 3)]
    event = st.builds(
        Event,
        st.sampled_from(
            ["add", "step", "add", "step", "step", "step", "abort", "add", "step", "no token"]
        ),
        st.sampled_from(prompts),
        st.sampled_from([1, 6, 3, 4, 5, 2]),
        st.sampled_from([2, 1, 0, 3]),
        st.sampled_from(["", "", *OPTIONS, "", ""]),
    )
    return st.builds(
        _make_case,
        st.sampled_from([2, 4, 6, 8, 10, 12, 3]),
        st.sampled_from([1, 2, 3]),
        st.sampled_from([1, 2, 3, 2, 4]),
        st.sampled_from([0, 1, 0, 3]),
        st.sampled_from([False, False, False, True, False] if chunked else [True]),
        st.sampled_from([False, False, True, False]),
        st.sampled_from(["fcfs", "priority"]),
        long_lists(event, 24).map(tuple),
        st.sampled_from([False, True]),
    )


def _make_case(
    num_blocks: int,
    block_size: int,
    max_num_seqs: int,
    spare_budget: int,
    unchunked: bool,
    uncached: bool,
    policy: Literal["fcfs", "priority"],
    events: tuple[Event, ...],
    runs_ahead: bool,
) -> Case:
    max_model_len = min(num_blocks * block_size, 16)
    min_budget = max(max_num_seqs, max_model_len) if unchunked else max_num_seqs
    config = SchedulerConfig(
        max_model_len=max_model_len,
        max_num_batched_tokens=min_budget + spare_budget,
        max_num_seqs=max_num_seqs,
        block_size=block_size,
        enable_prefix_caching=not uncached,
        enable_chunked_prefill=not unchunked,
        policy=policy,
    )
    fitting = tuple(replace(each, prompt=each.prompt[: max_model_len - 1]) for each in events)
    return Case(num_blocks, config, fitting, runs_ahead)
