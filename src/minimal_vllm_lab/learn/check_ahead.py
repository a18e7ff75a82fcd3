"""The check of run-ahead: what is launched and waited for, call by call, on a pretended GPU."""

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
    "If the engine runs ahead, the next step is launched before this one's tokens are waited for.",
    "Else the GPU is idle while the CPU makes outputs and plans.",
    CHAPTER,
)
IN_TURN = Rule(
    "Nothing is launched ahead if the engine doesn't run ahead, or needs the pending tokens first.",
    "A penalty would be applied as if the last token had not been written.",
    CHAPTER,
)
FINISHED = Rule(
    "At its end a call waits for one step, the oldest in flight, and for no other.",
    "Users wait for its tokens. If the newer one is waited for as well, the GPU is idle while the "
    "next is planned.",
    CHAPTER,
)
RETURNED = Rule(
    "step returns all the outputs that it was given.",
    "Nobody else has them: whoever streams would miss a piece.",
    CHAPTER,
)
MOST_CALLS = 100
LIMITS = SchedulerConfig(max_model_len=32, max_num_batched_tokens=8, max_num_seqs=4, block_size=4)


@dataclass(frozen=True, slots=True)
class Wish:
    """A request, and before which call of ``step`` it comes."""

    call: int
    prompt: tuple[int, ...]
    max_tokens: int
    has_penalty: bool


@dataclass(frozen=True, slots=True)
class Case:
    """Whether the engine runs ahead, and what is asked of it."""

    ahead: bool
    wishes: tuple[Wish, ...]


@dataclass(slots=True)
class _Step:
    """One that was launched."""

    gpu: "_Gpu"
    number: int
    token_ids: list[int]

    def wait(self) -> StepResult:
        self.gpu.events.append(f"wait for {self.number}")
        return StepResult(Sampled.one_each(self.token_ids), [])


@dataclass(slots=True)
class _Gpu:
    """Writes down what it is told to do; it knows tokens before the CPU does."""

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
    """An engine at work on a case, one call after the other."""

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

    def add(self) -> Iterator[tuple[str, Wish]]:
        """Let those come whose time it is."""
        for number, wish in enumerate(self._case.wishes):
            if wish.call == self._calls:
                name = "ABC"[number]
                penalty = 1.5 if wish.has_penalty else 1.0
                params = SamplingParams(
                    temperature=0, max_tokens=wish.max_tokens, repetition_penalty=penalty
                )
                self.engine.add_request(name, list(wish.prompt), params)
                yield name, wish
        self._calls += 1

    def step(self) -> tuple[list[str], dict[str, list[int]]]:
        """What a call has the GPU do, and what it returns."""
        self.gpu.events.clear()
        outputs = self.engine.step()
        tokens = {each.request_id: list(each.outputs[0].token_ids) for each in outputs}
        return list(self.gpu.events), tokens


def check_ahead(module: ModuleType) -> Lesson | None:
    """Hold ``MyEngine.step`` to the engine's own."""

    def run(case: Case, history: History) -> None:
        history.note(f"engine = MyEngine(…, async_scheduling={case.ahead})")
        mine, reference = _Run(module.MyEngine, case), _Run(Engine, case)
        for _ in range(MOST_CALLS):
            for name, wish in mine.add():
                history.note(
                    f"engine.add_request({name!r}, {list(wish.prompt)}, "
                    f"max_tokens={wish.max_tokens}{', a penalty' * wish.has_penalty})"
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
        return (replace(case, wishes=tuple(each)) for each in shorter_lists(case.wishes))

    return find_lesson(_cases(), run, examples=100, shorter=shorter)


def _cases() -> "SearchStrategy[Case]":
    from hypothesis import strategies as st

    wish = st.builds(
        Wish,
        st.integers(0, 5),
        st.lists(st.integers(1, 6), min_size=1, max_size=12).map(tuple),
        st.integers(1, 8),
        st.sampled_from([False, False, True]),
    )
    wishes = st.lists(wish, min_size=1, max_size=3).map(tuple)
    return st.builds(Case, st.sampled_from([True, True, False]), wishes)


def _compare(found: list[str], expected: list[str], ahead: bool) -> None:
    if found == expected:
        return
    launched, wanted = (sum("launch" in each for each in events) for events in (found, expected))
    told = ", ".join(found) or "nothing", ", ".join(expected) or "nothing"
    if launched > wanted:
        raise Broken(IN_TURN, *told)
    if launched < wanted or sorted(found) == sorted(expected):
        raise Broken(AHEAD if ahead else FINISHED, *told)
    raise Broken(FINISHED, *told)
