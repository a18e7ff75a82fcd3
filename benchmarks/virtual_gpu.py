"""An engine that launches steps ahead, on a GPU of which only the time is simulated.

The engine and its scheduler are the real ones, with clocks that tell simulated time: one of the
CPU, and the time at which the GPU has finished all that was launched. What the CPU does while the
GPU runs costs nothing, and what it does while the GPU waits for it does. The costs below are
assumed, in the order of what was measured on an H200 (chapter 19 of the course).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.config import SchedulerConfig, SpeculativeConfig
from minimal_vllm.engine.admission import Admission, ModelLimits
from minimal_vllm.engine.engine import Engine
from minimal_vllm.engine.output_processor import OutputProcessor
from minimal_vllm.engine.parts import make_speculating_scheduler
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.outputs import OutputKind
from minimal_vllm.runner.interface import StepResult
from minimal_vllm.sampling.sampler import Sampled
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.speculation.draft_cache import DraftCache
from minimal_vllm.speculation.eagle_cache import EagleCache
from minimal_vllm.speculation.interface import EaglePlaceholders, Placeholders
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm_lab.sim.cost_model import CostModel
from minimal_vllm_lab.sim.guesses import is_lucky
from minimal_vllm_lab.sim.load import load_of_plan

if TYPE_CHECKING:
    from minimal_vllm.engine.scheduler_interface import SchedulerInterface
    from minimal_vllm.step.request import Request

PLANNING, PLANNING_ONE = 200e-6, 12e-6
"""Seconds of the CPU to plan and launch a step, and for each of its requests."""
ENDING, ENDING_ONE = 100e-6, 8e-6
"""Seconds of the CPU to take in a step's tokens, and for each of its requests."""
SEVERAL = 0.09
"""What a step takes longer if requests have several places, as they need other matrix products."""
PASS = 120e-6
"""Seconds that a pass takes beside its kernels."""
READING = 0.01
"""What each step takes longer if a head reads its hidden states."""
VOCAB_SIZE = 4096


@dataclass(frozen=True)
class Drafting:
    """What guesses on the GPU take."""

    costs: CostModel
    """Predicts the duration of a pass."""
    cache: DraftCache
    """Says which tokens each pass computes."""


@dataclass(frozen=True, slots=True)
class VirtualFlight:
    """Step that the virtual GPU computes; see ``Flight``."""

    gpu: "VirtualGpu"
    end: float
    tokens: list[list[int]]

    def wait(self) -> StepResult:
        """Let the CPU's clock advance until the step has ended, and its tokens are taken in."""
        ending = ENDING + ENDING_ONE * len(self.tokens)
        self.gpu.now = max(self.gpu.now, self.end) + ending
        return StepResult(Sampled(self.tokens, [None for _ in self.tokens]), [])


class VirtualGpu:
    """Runner whose answers repeat one token, and whose guesses are right by chance.

    Args:
        costs: predicts the duration of a step.
        right: probability that a guess is right if those before it are.
        drafting: the model that guesses; None: guesses cost nothing.
    """

    def __init__(self, costs: CostModel, right: float, drafting: Drafting | None) -> None:
        self.now = 0.0
        """Time of the CPU."""
        self._free_at = 0.0
        """Time at which the GPU has finished."""
        self._costs = costs
        self._right = right
        self._drafting = drafting
        self._num_output: dict[Request, int] = {}

    def launch(self, plan: Plan) -> VirtualFlight:
        """Let the GPU compute a step as soon as it is free."""
        self.now += PLANNING + PLANNING_ONE * len(plan.scheduled)
        seconds = self._costs.seconds(load_of_plan(plan)) + self._seconds_to_guess(plan)
        seconds *= 1 + SEVERAL * any(entry.guesses for entry in plan.scheduled)
        if self._drafting is not None and isinstance(self._drafting.cache, EagleCache):
            seconds *= 1 + READING
        self._free_at = max(self._free_at, self.now) + seconds
        tokens = [self._sample(entry) for entry in plan.scheduled if entry.num_logits]
        return VirtualFlight(self, self._free_at, tokens)

    def _seconds_to_guess(self, plan: Plan) -> float:
        if self._drafting is None:
            return 0.0
        drafts = self._drafting.cache.begin(plan)
        of_request = {draft.entry.request: draft for draft in drafts if draft.count}
        follows = any(draft.entry.follows_guesses for draft in of_request.values())
        passes = self._following(plan) if follows else self._drafting.cache.passes(drafts)
        total = 0.0
        for entries in passes:
            total += PASS + self._drafting.costs.seconds(load_of_plan(Plan(entries)))
            for entry in entries:
                if entry.num_logits:
                    of_request[entry.request].guesses.append(0)
        return total

    @staticmethod
    def _following(plan: Plan) -> Iterable[list[ScheduledRequest]]:
        """Yield the passes behind guesses in flight, of a head: all their places, then guesses."""
        guessing = [entry for entry in plan.scheduled if entry.guesses]
        for place in range(max(len(entry.guesses) for entry in guessing)):
            yield [
                ScheduledRequest(
                    entry.request,
                    entry.start,
                    1 if place else entry.request.num_pending_tokens - entry.num_logits,
                    num_logits=1,
                )
                for entry in guessing
                if place < len(entry.guesses)
            ]

    def _sample(self, entry: ScheduledRequest) -> list[int]:
        request, num_right = entry.request, 0
        index = self._num_output.get(request, 0)
        while num_right < len(entry.guesses) and is_lucky(
            self._right, 0, request.arrival, index + num_right
        ):
            num_right += 1
        self._num_output[request] = index + num_right + 1
        return [0] * (num_right + 1)


@dataclass(frozen=True)
class VirtualEngine:
    """An engine without requests, and its GPU."""

    engine: Engine
    gpu: VirtualGpu

    def seconds(self, jobs: Iterable[tuple[list[int], int]]) -> float:
        """Return the time that it takes to serve prompts with given lengths of outputs."""
        begin = self.gpu.now
        for number, (prompt, length) in enumerate(jobs):
            params = SamplingParams(max_tokens=length, ignore_eos=True, detokenize=False)
            kind = OutputKind.FINAL_ONLY
            self.engine.add_request(str(number), prompt, params, output_kind=kind)
        while self.engine.has_unfinished_requests:
            self.engine.step()
        return self.gpu.now - begin


def make_engine(
    limits: SchedulerConfig,
    num_blocks: int,
    costs: CostModel,
    speculative: SpeculativeConfig | None,
    right: float,
    drafting: Drafting | None,
) -> VirtualEngine:
    """Make an engine on a virtual GPU.

    Args:
        limits: limits of the scheduler.
        num_blocks: number of blocks.
        costs: see ``VirtualGpu``.
        speculative: options of speculative decoding; None: no guesses are made.
        right: see ``VirtualGpu``.
        drafting: see ``VirtualGpu``.
    """
    gpu, pool = VirtualGpu(costs, right, drafting), BlockPool(num_blocks, LRU())
    scheduler: SchedulerInterface = Scheduler(limits, pool)
    if speculative is not None:
        places = EaglePlaceholders() if speculative.guesser == "eagle3" else Placeholders()
        clock: Callable[[], float] = partial(getattr, gpu, "now")
        scheduler = make_speculating_scheduler(
            speculative, limits, pool, places, clock, on_gpu=True
        )
    admission = Admission(ModelLimits(VOCAB_SIZE, frozenset(), 0), None, seed=0)
    outputs = OutputProcessor(None)
    return VirtualEngine(Engine(scheduler, gpu, admission, outputs, async_scheduling=True), gpu)
