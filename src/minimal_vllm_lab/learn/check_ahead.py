"""Check of the exercise run-ahead: the launches and waits of each call, on a fake GPU."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import TYPE_CHECKING

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.admission import Admission, ModelLimits
from minimal_vllm.engine.engine import Engine
from minimal_vllm.engine.output_processor import OutputProcessor
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.runner.interface import StepResult
from minimal_vllm.sampling.sampler import Sampled
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.plan import Plan
from minimal_vllm_lab.check.fake_model import EOS, VOCAB_SIZE, next_token
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_lesson, shorter_lists

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

CHAPTER = "11-cuda-graphs"
AHEAD = Rule(
    "If the engine runs ahead, it launches the next step before it waits for this one's tokens.",
    "Otherwise the GPU is idle while the CPU makes outputs and plans.",
    CHAPTER,
)
NOT_AHEAD = Rule(
    "No step is launched ahead if the engine does not run ahead, or needs the pending tokens "
    "first.",
    "A penalty, for example, would be applied as if the last token had not been generated.",
    CHAPTER,
)
WAITS_FOR_OLDEST = Rule(
    "Each call ends by waiting for one step: the oldest in flight.",
    "Users wait for its tokens. If the engine also waits for the newer step, the GPU is idle while "
    "the next step is planned.",
    CHAPTER,
)
RETURNED = Rule(
    "step returns all outputs of the step that it waited for.",
    "The outputs are stored nowhere else. A client that streams would miss a piece of its text.",
    CHAPTER,
)
MAX_CALLS = 100
LIMITS = SchedulerConfig(max_model_len=32, max_num_batched_tokens=8, max_num_seqs=4, block_size=4)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, and when it arrives."""

    call: int
    """Number of the call of ``step`` before which it is added, from 0."""
    prompt: tuple[int, ...]
    max_tokens: int
    has_penalty: bool


@dataclass(frozen=True, slots=True)
class Case:
    """A setting of the engine, and the requests that arrive."""

    ahead: bool
    """Value of ``async_scheduling``: True if the engine may launch a step ahead."""
    arrivals: tuple[Arrival, ...]


@dataclass(slots=True)
class _Step:
    """A launched step, which records when it is waited for."""

    gpu: "_Gpu"
    number: int
    token_ids: list[int]

    def wait(self) -> StepResult:
        self.gpu.events.append(f"wait for {self.number}")
        return StepResult(Sampled.one_each(self.token_ids), [])


@dataclass(slots=True)
class _Gpu:
    """A fake GPU that records launches and waits, and samples tokens at launch."""

    events: list[str] = field(default_factory=list)
    num_launched: int = 0
    texts: dict[str, list[int]] = field(default_factory=dict)

    def launch(self, plan: Plan) -> _Step:
        step = _Step(self, self.num_launched, [])
        self.events.append(f"launch {step.number}")
        self.num_launched += 1
        for request in plan.sampling:
            text = self.texts.setdefault(request.request_id, list(request.token_ids))
            text.append(next_token(text))
            step.token_ids.append(text[-1])
        return step


class _Run:
    """An engine that runs a case, one call of ``step`` after the other."""

    def __init__(self, make: Callable[..., Engine], case: Case) -> None:
        self.gpu = _Gpu()
        self._case = case
        self._calls = 0
        self.engine = make(
            Scheduler(LIMITS, BlockPool(64, LRU())),
            self.gpu,
            Admission(ModelLimits(VOCAB_SIZE, frozenset({EOS}), 0), None, seed=0),
            OutputProcessor(None),
            async_scheduling=case.ahead,
        )

    def add(self) -> Iterator[tuple[str, Arrival]]:
        """Add the requests that arrive before the next call, and yield each with its name."""
        for number, arrival in enumerate(self._case.arrivals):
            if arrival.call == self._calls:
                name = "ABC"[number]
                penalty = 1.5 if arrival.has_penalty else 1.0
                params = SamplingParams(
                    temperature=0, max_tokens=arrival.max_tokens, repetition_penalty=penalty
                )
                self.engine.add_request(name, list(arrival.prompt), params)
                yield name, arrival
        self._calls += 1

    def step(self) -> tuple[list[str], dict[str, list[int]]]:
        """Call ``step``, and return the events on the GPU, and the output tokens per request."""
        self.gpu.events.clear()
        outputs = self.engine.step()
        if not isinstance(outputs, list):
            raise Broken(RETURNED, f"{outputs!r}", "a list of outputs")
        tokens = {each.request_id: list(each.outputs[0].token_ids) for each in outputs}
        if len(tokens) < len(outputs):
            names = [each.request_id for each in outputs]
            raise Broken(RETURNED, f"outputs of {names}", "one output per request")
        return list(self.gpu.events), tokens


def check_ahead(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Compare ``MyEngine`` with the engine: launches, waits and outputs of each call of ``step``.

    Returns:
        A lesson about the first difference, or None.
    """

    def run(case: Case, history: History) -> None:
        history.note(f"engine = MyEngine(…, async_scheduling={case.ahead})")
        mine, reference = _Run(module.MyEngine, case), _Run(Engine, case)
        for _ in range(MAX_CALLS):
            for name, arrival in mine.add():
                history.note(
                    f"engine.add_request({name!r}, {list(arrival.prompt)}, "
                    f"max_tokens={arrival.max_tokens}"
                    f"{', repetition_penalty=1.5' * arrival.has_penalty})"
                )
            list(reference.add())
            if not reference.engine.has_unfinished_requests:
                continue
            history.note("engine.step()")
            expected, right = reference.step()
            found, outputs = mine.step()
            history.lines[-1] += f"   {', '.join(found) or 'nothing'} -> {outputs}"
            _compare(found, expected, case.ahead)
            if outputs != right:
                raise Broken(RETURNED, f"{outputs}", f"{right}")

    def shorter(case: Case) -> Iterator[Case]:
        return (replace(case, arrivals=tuple(each)) for each in shorter_lists(case.arrivals))

    return find_lesson(_cases(), run, examples=100, seed=seed, shorter=shorter)


def _cases() -> "SearchStrategy[Case]":
    from hypothesis import strategies as st

    arrival = st.builds(
        Arrival,
        st.integers(0, 5),
        st.lists(st.integers(1, 6), min_size=1, max_size=12).map(tuple),
        st.integers(1, 8),
        st.sampled_from([False, False, True]),
    )
    arrivals = st.lists(arrival, min_size=1, max_size=3).map(tuple)
    return st.builds(Case, st.sampled_from([True, True, False]), arrivals)


def _compare(found: list[str], expected: list[str], ahead: bool) -> None:
    if found == expected:
        return
    num_launched = sum("launch" in event for event in found)
    num_expected = sum("launch" in event for event in expected)
    found_text = ", ".join(found) or "nothing"
    expected_text = ", ".join(expected) or "nothing"
    pairs = zip(found, expected, strict=False)
    first = next((event for event, right in pairs if event != right), "")
    if num_launched > num_expected or first.startswith("launch"):
        raise Broken(NOT_AHEAD, found_text, expected_text)
    if num_launched < num_expected or sorted(found) == sorted(expected):
        raise Broken(AHEAD if ahead else WAITS_FOR_OLDEST, found_text, expected_text)
    raise Broken(WAITS_FOR_OLDEST, found_text, expected_text)
