"""Check of the exercise beat-fcfs: simulate a scheduler and first come, first served."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean
from types import ModuleType
from typing import Any

import numpy as np

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.config import EngineConfig, SchedulerConfig
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.request import Request, Status
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.scheduler import check_scheduler
from minimal_vllm_lab.check.search import History, find_mistake
from minimal_vllm_lab.learn.referee import CHAPTER, Referee, Stopped

TRAFFIC: dict[str, Any] = {"request_rate": 10.0}
SYNTHETIC: dict[str, Any] = {"num_prompts": 600, "input_len": 3000, "output_len": 60}
ENGINE: dict[str, Any] = {"max_num_seqs": 64, "max_num_batched_tokens": 2048}
KNOWN_SEEDS = range(3)
NUM_UNKNOWN = 6
"""Number of simulations with an unknown seed: the tail of a single one is a matter of luck."""
MIN_GAIN = 0.1
MAX_STEPS = 5
"""Number of steps that a scheduler may take for each one that fcfs takes."""
SHORT, LONG = 200, 20_000
"""Prompts whose order is looked at, in tokens."""
LENGTHS = (10, 2500, 10, 10)
"""Prompts whose keys are compared, in tokens: some alike, and one that others overtake."""
TAIL = 99
"""Percentile of the time to first token that is compared."""
UNIQUE_KEYS = Rule(
    "No two requests have the same key.",
    "A request is found among the waiting ones by its key. With two equal keys, the wrong one may "
    "be taken out. End the key with request.arrival, which no two requests share.",
    CHAPTER,
)
CONSTANT_KEYS = Rule(
    "The key of a request never changes.",
    "Requests are inserted where their key belongs, and not moved later. A key that changes leaves "
    "the lists out of order, and the request is not found where its key says.",
    CHAPTER,
)
FASTER = Rule(
    "The 99th percentile of the time to first token is at least 10 % below that of fcfs.",
    "Users complain about the tail. If only the longest prompts are served last, few requests are "
    "affected. But if they wait too long, they become the tail themselves, so let the order also "
    "depend on the arrival.",
    CHAPTER,
)
STILL_FASTER = Rule(
    "With traffic that is not known in advance, the tail is not longer than that of fcfs.",
    "An order that fits one list of requests by chance is of no use for the next one.",
    CHAPTER,
)


@dataclass(frozen=True)
class Race:
    """Tail latencies of a scheduler and of first come, first served, with the same traffic."""

    mine: float
    """99th percentile of the time to first token in ms, averaged over the runs."""
    fcfs: float
    """Tail latency of first come, first served, likewise."""
    remark: str = ""
    """Sentence on the slowest requests, shown beside the result."""

    @property
    def gain(self) -> float:
        """Part of the tail latency that the scheduler saves; negative if it adds to it."""
        return 1 - self.mine / self.fcfs


def check_order(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Check ``MyScheduler`` as a scheduler, and then compare its tail latency with that of fcfs.

    Returns:
        A lesson about a broken rule, or None if all hold.
    """

    def run(history: History) -> None:
        result = race(module, history, seed)
        rule, least = (FASTER, MIN_GAIN) if seed is None else (STILL_FASTER, 0.0)
        if result.gain < least:
            raise Broken(
                rule,
                f"p99 TTFT {result.mine:,.0f} ms ({-result.gain:+.0%})\n{result.remark}",
                f"at most {(1 - least) * result.fcfs:,.0f} ms: first come, first served has "
                f"{result.fcfs:,.0f} ms",
            )

    return (
        find_mistake(lambda history: _check_keys(module, history))
        or check_scheduler(module.MyScheduler, seed=seed)
        or find_mistake(run)
    )


# ---- keys ---------------------------------------------------------------------------------------


def _check_keys(module: ModuleType, history: History) -> None:
    """Check the keys of some requests, if the scheduler orders requests by a key.

    Raises:
        Broken: two keys are equal, or a key changes.
    """
    key = _find_key(module)
    if key is None:
        return
    history.note("key = MyScheduler(config, pool).key")
    requests = [_request(arrival, num_tokens) for arrival, num_tokens in enumerate(LENGTHS)]
    keys = [_key_of(request, key, history) for request in requests]
    for later, (request, found) in enumerate(zip(requests, keys, strict=True)):
        if found in keys[:later]:
            other = requests[keys.index(found)]
            raise Broken(UNIQUE_KEYS, f"arrivals {other.arrival} and {request.arrival}: {found}")
    sorted(keys)
    for request, before in zip(requests, keys, strict=True):
        request.status, request.num_computed_tokens = Status.RUNNING, request.num_tokens
        request.token_ids.append(1)
        history.note("it has run, and has got its first token")
        after = _key_of(request, key, history)
        if after != before:
            raise Broken(CONSTANT_KEYS, f"{after}", f"{before}, as before")


def _find_key(module: ModuleType) -> Callable[[Request], Any] | None:
    """Return the function by which ``MyScheduler`` orders requests, or None if it has none."""
    config = SchedulerConfig(
        max_model_len=4096, max_num_batched_tokens=64, max_num_seqs=4, block_size=16
    )
    key: Callable[[Request], Any] | None
    key = getattr(module.MyScheduler(config, BlockPool(256, LRU())), "key", None)
    return key


def _request(arrival: int, num_tokens: int) -> Request:
    return Request(
        request_id=str(arrival),
        token_ids=array("i", [1] * num_tokens),
        num_prompt_tokens=num_tokens,
        params=SamplingParams(max_tokens=50),
        arrival=arrival,
        max_num_tokens=num_tokens + 50,
    )


def _key_of(request: Request, key: Callable[[Request], Any], history: History) -> Any:
    history.note(f"a request with arrival {request.arrival}, {request.num_prompt_tokens} tokens:")
    return history.call("key", key, _Short(request))


class _Short:
    """A request that is shown as the word ``request``."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)

    def __repr__(self) -> str:
        return "request"


# ---- the race -----------------------------------------------------------------------------------


def race(module: ModuleType, history: History, seed: int | None = None) -> Race:
    """Simulate ``MyScheduler`` and first come, first served.

    Args:
        module: the learner's module.
        history: takes the tail latencies of all runs.
        seed: seed of the first run of an unknown traffic. Default: the traffic of every check.

    Raises:
        Broken: some requests were not served, or not as they should be.
    """
    seeds = KNOWN_SEEDS if seed is None else range(seed, seed + NUM_UNKNOWN)
    fcfs = [_first_come_first_served(each) for each in seeds]
    mine = [
        _simulate(module.MyScheduler, each, MAX_STEPS * other.num_steps)
        for each, other in zip(seeds, fcfs, strict=True)
    ]
    names = ("first come, first served", module.MyScheduler.__name__)
    for name, runs in zip(names, (fcfs, mine), strict=True):
        shown = ", ".join(f"{_tail(run):,.0f}" for run in runs)
        history.note(f"{name}: p99 TTFT {shown} ms with seeds {', '.join(map(str, seeds))}")
    remark = "\n".join([_remark(mine, fcfs), *_unfairness(module)])
    return Race(mean(map(_tail, mine)), mean(map(_tail, fcfs)), remark)


def _tail(run: Referee) -> float:
    """Return the 99th percentile of the time to first token in ms."""
    return float(1000 * np.percentile(list(run.waits.values()), TAIL))


def _remark(mine: Sequence[Referee], fcfs: Sequence[Referee]) -> str:
    """Say who the slowest requests are, since they are the ones to help."""
    if [run.first_token_at for run in mine] == [run.first_token_at for run in fcfs]:
        return (
            "This is exactly first come, first served: is self.key your order, set after "
            "super().__init__? If it is, nobody ever overtakes by it."
        )
    everyone = np.mean([len(job.prompt) for run in fcfs for job in run.jobs])
    return (
        f"The prompts of the slowest 1 % have {_slowest(mine):,.0f} tokens on average. "
        f"(With fcfs: {_slowest(fcfs):,.0f}; all prompts: {everyone:,.0f}.)"
    )


def _unfairness(module: ModuleType) -> list[str]:
    """Say who is let past whom but should not be, if the scheduler orders requests by a key."""
    key = _find_key(module)
    if key is None:
        return []

    def is_first(*requests: tuple[int, int]) -> bool:
        one, other = (key(_request(*each)) for each in requests)
        return bool(one < other)

    if is_first((1001, SHORT), (1000, SHORT)):
        return ["Of two prompts of one length, the key lets the one that came later go first."]
    if is_first((1001, LONG), (1000, SHORT)):
        return ["The key lets a long prompt overtake a short one that came before it."]
    if is_first((10**6, SHORT), (1000, LONG)):
        return [
            "The key lets any number of short prompts overtake a long one: one that comes a "
            "million requests later still goes first."
        ]
    return []


def _slowest(runs: Sequence[Referee]) -> float:
    """Return the mean number of prompt tokens of the requests that wait longest."""
    lengths = [
        len(run.jobs[index].prompt)
        for run in runs
        for index, wait in run.waits.items()
        if 1000 * wait >= _tail(run)
    ]
    return float(np.mean(lengths))


@cache
def _first_come_first_served(seed: int) -> Referee:
    return _simulate(None, seed)


def _simulate(scheduler: type | None, seed: int, max_steps: int = 10**9) -> Referee:
    """Simulate a scheduler, and return the referee who has watched.

    Raises:
        Broken: a request was not served as it should be.
    """
    from minimal_vllm_lab.sim.config import (
        FleetConfig,
        SimulationConfig,
        SyntheticConfig,
        TrafficConfig,
    )
    from minimal_vllm_lab.sim.simulation import make_design, make_jobs, simulate

    config = SimulationConfig(
        EngineConfig(model="qwen3-8b", scheduler=scheduler, **ENGINE),
        FleetConfig(gpu="h100"),
        traffic=TrafficConfig(seed=seed, **TRAFFIC),
        synthetic=SyntheticConfig(**SYNTHETIC),
    )
    design = make_design(config)
    referee = Referee(list(make_jobs(config)), design.scheduler_config, max_steps)
    try:
        simulate(design, config, observers_of=lambda _: [referee])
    except Stopped as stopped:
        raise stopped.broken from None
    referee.check_end()
    return referee
