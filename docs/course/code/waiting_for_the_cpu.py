"""The number of operations in a step, and the gain from planning the next step meanwhile."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import EVICTION_STRATEGIES
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.admission import Admission, ModelLimits
from minimal_vllm.engine.engine import Engine
from minimal_vllm.engine.output_processor import OutputProcessor
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.runner.interface import StepResult
from minimal_vllm.sampling.sampler import Sampled
from minimal_vllm.step.plan import Plan

PROMPT = "The old captain looked at the sea, and"
NUM_REQUESTS, NUM_STEPS = 256, 50
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_STEPS, ignore_eos=True)


class CountOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts PyTorch's operations; on a GPU each would be one launch or several."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += not func.is_view  # a view is only another look at the same memory
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class PretendedStep:
    """A step of a pretend GPU, which takes time and computes nothing."""

    ends: float
    num_tokens: int

    def wait(self) -> StepResult:
        """Wait until the time is over, and return the tokens."""
        time.sleep(max(0.0, self.ends - time.perf_counter()))
        return StepResult(Sampled.one_each([0] * self.num_tokens), [])


class PretendedGpu:
    """Runs one step after another, as a GPU's queue does, while the CPU is free."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._free_from = 0.0

    def launch(self, plan: Plan) -> PretendedStep:
        """Queue the step after the running ones."""
        self._free_from = max(self._free_from, time.perf_counter()) + self._seconds
        return PretendedStep(self._free_from, len(plan.sampling))


def main() -> None:
    show_operations()
    print(f"\n2. {NUM_REQUESTS} requests, on a GPU that takes so many milliseconds for a step")
    print("   GPU   CPU   one after the other   at the same time")
    for gpu in (1.0, 4.0, 8.0):
        _, waits = milliseconds_per_step(gpu, ahead=False)
        cpu, runs_ahead = milliseconds_per_step(gpu, ahead=True)
        print(f"   {gpu:3.0f}   {cpu:3.1f}   {waits:19.1f}   {runs_ahead:16.1f}")


def show_operations() -> None:
    llm = LLM(num_gpu_blocks_override=128)
    llm.engine.add_request("A", llm.tokenizer.encode(PROMPT), GREEDY)
    for _ in range(3):
        llm.engine.step()
    begun = time.perf_counter()
    llm.engine.step()
    seconds = time.perf_counter() - begun
    with CountOperations() as operations:  # type: ignore[no-untyped-call]
        llm.engine.step()
    one = torch.ones(1)
    begun = time.perf_counter()
    for _ in range(10_000):
        one.add_(1)
    each = (time.perf_counter() - begun) / 10_000
    layers = len(llm.built.caches)
    print(
        f"1. One decode step of the built-in model, {layers} layers: {operations.count} operations"
    )
    print(
        f"   the step takes {1e3 * seconds:.1f} ms; an operation on one number {1e6 * each:.1f} µs"
    )


def milliseconds_per_step(gpu: float, *, ahead: bool) -> tuple[float, float]:
    """Measure CPU and wall time per step of the real engine on a pretend GPU."""
    config = SchedulerConfig(max_model_len=256, max_num_batched_tokens=4096)
    engine = Engine(
        Scheduler(config, BlockPool(8192, EVICTION_STRATEGIES["lru"]())),
        PretendedGpu(gpu / 1e3),
        Admission(ModelLimits(1000, frozenset(), 0), None, seed=0),
        OutputProcessor(None),
        async_scheduling=ahead,
    )
    for index in range(NUM_REQUESTS):
        engine.add_request(str(index), [index + 1] * 10, GREEDY)
    engine.step()
    begun, cpu_begun, num_steps = time.perf_counter(), time.thread_time(), 0
    while engine.has_unfinished_requests:
        engine.step()
        num_steps += 1
    spent = time.thread_time() - cpu_begun, time.perf_counter() - begun
    return 1e3 * spent[0] / num_steps, 1e3 * spent[1] / num_steps


if __name__ == "__main__":
    main()
