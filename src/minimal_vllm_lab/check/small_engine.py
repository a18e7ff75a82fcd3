"""A small engine for checks: a scheduler with a block pool and a fake model."""

from array import array
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request
from minimal_vllm_lab.check.fake_model import EOS, VOCAB_SIZE, FakeGrammar, FakeModel, FakeStep
from minimal_vllm_lab.check.scheduler_cases import Case, Event

MakeScheduler = Callable[[SchedulerConfig, BlockPool], Scheduler]

NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Ids of the requests of an engine, in the order in which they are added."""


class SmallEngine:
    """A scheduler with its pool, a fake model, and all requests that were added.

    Attributes:
        requests: all requests that were ever added.
        in_flight: steps that were launched and whose tokens have not been fetched, in order.
    """

    def __init__(self, make: MakeScheduler, case: Case) -> None:
        self.pool = BlockPool(case.num_blocks, LRU())
        self.scheduler = make(case.config, self.pool)
        self.requests: list[Request] = []
        self.in_flight: deque[tuple[Plan, FakeStep]] = deque()
        self._model = FakeModel(case.num_blocks, case.config.block_size)

    def add(self, event: Event) -> Request:
        """Add the request of an event to the scheduler, and return it."""
        number = len(self.requests)
        request = Request(
            request_id=NAMES[number],
            token_ids=array("i", event.prompt),
            num_prompt_tokens=len(event.prompt),
            params=_sampling_params(event),
            arrival=number,
            eos_token_ids=frozenset({EOS}),
            grammar=FakeGrammar() if event.option == "grammar" else None,
            priority=event.number if self.scheduler.config.policy == "priority" else 0,
        )
        self.requests.append(request)
        self.scheduler.add(request)
        return request

    def launch(self, plan: Plan) -> None:
        """Begin to compute a plan."""
        self.in_flight.append((plan, self._model.launch(plan)))

    def lists(self) -> tuple[list[Request], list[Request]]:
        """Return copies of the lists of running and of waiting requests."""
        return list(self.scheduler.running), list(self.scheduler.waiting)

    def pending(self) -> Counter[Request]:
        """Return the number of tokens that the steps in flight will append to each request."""
        return Counter(request for plan, _ in self.in_flight for request in plan.sampling)


def _sampling_params(event: Event) -> SamplingParams:
    half = list(range(VOCAB_SIZE // 2))
    options: dict[str, Any] = {
        "prompt_logprobs": {"prompt_logprobs": 0},
        "stop_token": {"stop_token_ids": half},
        "min_tokens": {"stop_token_ids": half, "min_tokens": min(3, event.max_tokens)},
    }
    return SamplingParams(max_tokens=event.max_tokens, **options.get(event.option, {}))
