"""The engine's scheduler and block pool at work without a model, for a page that has only Python.

A token is a word, and instead of being computed, an answer goes on with the passage that its prompt
ends in. Everything else is the engine's: the scheduler, the pool, the hashes, the records. The time
of a step is the simulator's prediction for a model on a GPU. Nothing here needs torch or NumPy, so
that it runs in Pyodide, too.
"""

import json
import traceback
from array import array
from dataclasses import asdict, field
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Literal

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import EVICTION_STRATEGIES
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.engine.scheduler_interface import SchedulerInterface
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.plugin import Part, make_part, part_name
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.settings import SETTINGS, clear_errors, describe
from minimal_vllm.trace.facts import EngineFacts
from minimal_vllm.trace.lines import Header, LineEncoder, decode, encode, encode_header
from minimal_vllm.trace.step_record import Listener, Record, StepRecord
from minimal_vllm.version import __version__
from minimal_vllm_lab.sim.config import Achieved
from minimal_vllm_lab.sim.cost_model import RooflineCostModel
from minimal_vllm_lab.sim.hardware import GPUS
from minimal_vllm_lab.sim.job import SimulatedRequest
from minimal_vllm_lab.sim.presets import PRESETS
from minimal_vllm_lab.sim.replica import Replica
from minimal_vllm_lab.view.demo_requests import DemoRequest, DemoRequests, read_passages
from minimal_vllm_lab.view.traffic_settings import TrafficSettings

MODEL, GPU = "qwen3-8b", "h200"
"""Model and GPU whose times the steps have."""

FILE = Path("my_scheduler.py")
"""File that a scheduler of the user's is written to, in the present folder."""

IDLE_SECONDS = 0.01
"""Time that passes instead of a step if no request is there."""

PRIORITIES = 3
"""Number of different priorities of requests under the ``priority`` policy."""


@clear_errors
@dataclass(frozen=True, config=SETTINGS)
class PlaygroundSettings:
    """Options of the engine, with the engine's names, and of its traffic."""

    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """Order of requests: by arrival (fcfs), or by priority, the smallest number first."""
    num_gpu_blocks_override: Annotated[int, Field(ge=1, le=512)] = 24
    """Number of KV blocks."""
    block_size: Annotated[int, Field(ge=1, le=64)] = 8
    """Number of tokens per KV block."""
    max_num_batched_tokens: Annotated[int, Field(ge=1, le=512)] = 32
    """Token budget: maximum number of tokens computed per step."""
    max_num_seqs: Annotated[int, Field(ge=1, le=64)] = 6
    """Maximum number of requests that run at once."""
    eviction_policy: Literal["lru", "lfu", "fifo"] = "lru"
    """Cached block to evict first: the least recently used (lru), the least frequently used (lfu)
    or the oldest (fifo)."""
    enable_prefix_caching: bool = True
    """Keep the KV blocks of finished requests, and share blocks between equal prefixes."""
    enable_chunked_prefill: bool = True
    """Compute a long prompt in several steps, alongside the decoding of other requests."""
    sliding_window: Annotated[int, Field(ge=1, le=512)] | None = None
    """Number of last tokens that one of two layer groups sees. Default: one group, which sees all
    tokens."""
    requests_per_100_steps: Annotated[float, Field(ge=0, le=60)] = 14
    """Mean number of new requests per 100 steps."""
    prompt_tokens: Annotated[int, Field(ge=1, le=400)] = 36
    """Mean length of a prompt, in tokens."""
    output_tokens: Annotated[int, Field(ge=1, le=400)] = 28
    """Mean length of an output, in tokens."""
    shared_prefix_tokens: Annotated[int, Field(ge=0, le=400)] = 16
    """Number of tokens at the start of each prompt that all prompts have in common."""
    seed: Annotated[int, Field(ge=0, le=9999)] = 0
    """Seed of the traffic: the same number gives the same requests."""
    num_steps: Annotated[int, Field(ge=1, le=500)] = 240
    """Number of steps to run, including those in which no request is there."""

    @property
    def traffic(self) -> TrafficSettings:
        """Rate and lengths of the requests."""
        return TrafficSettings(
            self.requests_per_100_steps,
            self.prompt_tokens,
            self.output_tokens,
            self.shared_prefix_tokens,
        )

    @property
    def longest(self) -> int:
        """Maximum number of tokens in a request: what the pool holds.

        Raises:
            ValueError: the pool does not hold a prompt of one token and its answer.
        """
        capacity = self.num_gpu_blocks_override * self.block_size
        longest = self._limits(capacity).longest_request(self.num_gpu_blocks_override)
        if longest < 2:
            raise ValueError(
                f"num_gpu_blocks_override: {self.num_gpu_blocks_override} blocks of "
                f"{self.block_size} do not hold a request of two tokens: raise it"
            )
        return longest

    @property
    def scheduler_config(self) -> SchedulerConfig:
        """Limits of the scheduler.

        Raises:
            ValueError: they contradict each other.
        """
        return self._limits(self.longest)

    def _limits(self, max_model_len: int) -> SchedulerConfig:
        return SchedulerConfig(
            max_model_len=max_model_len,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_num_seqs=self.max_num_seqs,
            block_size=self.block_size,
            enable_prefix_caching=self.enable_prefix_caching,
            enable_chunked_prefill=self.enable_chunked_prefill,
            policy=self.scheduling_policy,
            windows=(None, self.sliding_window) if self.sliding_window else (None,),
        )


class StalledError(Exception):
    """Raised when a scheduler plans nothing although requests wait."""


@plain_dataclass(frozen=True)
class Complaint:
    """Why a run ended before its last step."""

    message: str
    """The error, with its type."""
    line: int | None
    """Line of the user's file in which it was raised; None if it was raised elsewhere."""


@plain_dataclass
class Run:
    """Result of ``play``."""

    lines: list[bytes] = field(default_factory=list)
    """The trace, line by line, up to the last step that ended."""
    complaint: Complaint | None = None
    """Why the run ended early; None if it did not."""


def play(settings: PlaygroundSettings, scheduler: Part = Scheduler) -> Run:
    """Run an engine without a model, and record it.

    Args:
        settings: options of the engine and of its traffic.
        scheduler: class of the scheduler, or its location: ``my_file.py:MyClass``. Its errors end
            the run, and so does a broken invariant.
    """
    run = Run()
    try:
        _run(settings, scheduler, run.lines)
    except Exception as error:
        run.complaint = _complain(error, scheduler)
    return run


def play_json(settings: str, source: str) -> str:
    """Run an engine as ``play`` does, for a caller that is no Python.

    Args:
        settings: fields of ``PlaygroundSettings``, as a JSON object.
        source: file that has a class ``MyScheduler``; empty for the engine's scheduler.

    Returns:
        JSON object with ``lines``, the trace as one string, and ``complaint``, an object with
        ``message`` and ``line``, or null.
    """
    try:
        chosen = PlaygroundSettings(**json.loads(settings))
    except ValueError as error:
        return json.dumps({"lines": "", "complaint": asdict(Complaint(str(error), None))})
    scheduler: Part = Scheduler
    if source:
        FILE.write_text(source, encoding="utf-8")
        scheduler = f"{FILE}:MyScheduler"
    run = play(chosen, scheduler)
    complaint = asdict(run.complaint) if run.complaint else None
    return json.dumps({"lines": b"".join(run.lines).decode(), "complaint": complaint})


class _Recorder(Listener):
    """Encodes records as lines, and keeps the record of the last step."""

    def __init__(self, facts: EngineFacts, words: list[str], lines: list[bytes]) -> None:
        self._encoder = LineEncoder(lambda token_id: words[token_id])
        self._lines = lines
        self._last_step: StepRecord | Exception | None = None
        lines.append(encode_header(Header(engine=facts, started=0.0, unix_time=0.0)))

    def __call__(self, record: Record) -> None:
        try:
            decode(encode(record))  # values of a wrong type are written, but can't be read
            self._lines.append(self._encoder.encode(record))
        except ValidationError as error:
            self._last_step = ValueError(f"the plan can't be shown: {describe(error)}")
        except Exception as error:  # the engine would go on; here the user should see it
            self._last_step = error
        else:
            if isinstance(record, StepRecord):
                self._last_step = record

    def take_step(self) -> StepRecord:
        """Return the record of the step that has just ended.

        Raises:
            Exception: the error because of which it could not be encoded.
        """
        assert self._last_step is not None  # noqa: S101 - a step has ended
        if isinstance(self._last_step, Exception):
            raise self._last_step
        return self._last_step


class _Reader:
    """Takes the model's place: knows the passage that each request goes on with."""

    def __init__(self) -> None:
        self._demos: dict[str, DemoRequest] = {}

    def add(self, request_id: str, demo: DemoRequest) -> None:
        self._demos[request_id] = demo

    def next_token(self, request: SimulatedRequest) -> int:
        demo = self._demos[request.request_id]
        return demo.passage[(demo.num_read + request.num_output_tokens) % len(demo.passage)]


class _Crowd:
    """Sends requests to a replica: the same ones at the same steps, whatever the scheduler does."""

    def __init__(self, settings: PlaygroundSettings, passages: list[list[int]]) -> None:
        self._settings = settings
        self._demo = DemoRequests(passages, settings.longest, settings.seed)
        self._priorities = Random(settings.seed)
        self._num_made = 0
        self.reader = _Reader()

    def arrive(self, replica: Replica, now: float) -> None:
        """Send the requests that arrive with the next step."""
        for _ in range(self._demo.count(self._settings.traffic)):
            replica.add(self._make_request(now))

    def _make_request(self, now: float) -> SimulatedRequest:
        demo = self._demo.make(self._settings.traffic)
        priority = self._priorities.randrange(PRIORITIES)
        self._num_made += 1
        request = SimulatedRequest(
            request_id=f"demo-{self._num_made}",
            token_ids=array("i", demo.prompt),
            num_prompt_tokens=len(demo.prompt),
            params=SamplingParams(max_tokens=demo.num_output, ignore_eos=True),
            arrival=self._num_made,
            arrived=now,
            priority=priority if self._settings.scheduling_policy == "priority" else 0,
        )
        self.reader.add(request.request_id, demo)
        return request


def _run(settings: PlaygroundSettings, scheduler: Part, lines: list[bytes]) -> None:
    """Run all steps, and append to the lines of the trace."""
    limits = settings.scheduler_config
    words, passages = _vocabulary()
    recorder = _Recorder(_facts(settings, limits, scheduler), words, lines)
    crowd = _Crowd(settings, passages)
    eviction = EVICTION_STRATEGIES[settings.eviction_policy]()
    replica = Replica(
        limits,
        BlockPool(settings.num_gpu_blocks_override, eviction),
        RooflineCostModel(ModelConfig.from_dict(PRESETS[MODEL]), GPUS[GPU], Achieved(), 2, 2),
        [recorder],
        lambda config, pool, _: make_part(scheduler, SchedulerInterface, config, pool),
        answer=crowd.reader.next_token,
    )
    now = 0.0
    for _ in range(settings.num_steps):
        crowd.arrive(replica, now)
        if replica.scheduler.has_work:
            now = replica.begin(now)
            replica.end()
            _check(replica.scheduler, recorder.take_step())
        else:
            now += IDLE_SECONDS


def _check(scheduler: SchedulerInterface, step: StepRecord) -> None:
    """Verify that a step did something, and that the scheduler is in order after it.

    Raises:
        StalledError: nothing was planned.
        InvariantError: an invariant of the scheduler or of the pool is broken.
    """
    if not step.scheduled:
        raise StalledError(
            f"step {step.step} computes nothing, although {step.num_waiting} requests wait and "
            f"{step.num_running} run: the engine would stand still"
        )
    check = getattr(scheduler, "check", None)  # a class of the user's need not have it
    if check:
        check()


def _vocabulary() -> tuple[list[str], list[list[int]]]:
    """Return the text of each token, a word, and the passages as tokens."""
    ids: dict[str, int] = {}
    passages = [
        [ids.setdefault(f" {word}", len(ids)) for word in passage.split()]
        for passage in read_passages()
    ]
    return list(ids), passages


def _facts(settings: PlaygroundSettings, limits: SchedulerConfig, scheduler: Part) -> EngineFacts:
    own = "" if scheduler is Scheduler else f", scheduled by {part_name(scheduler)}"
    return EngineFacts(
        program=f"minimal-vllm {__version__}",
        model=f"No model{own}",
        device=f"the times of {MODEL}, {GPU}",
        dtype="bfloat16",
        num_blocks=settings.num_gpu_blocks_override,
        block_size=limits.block_size,
        max_model_len=limits.max_model_len,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
        scheduling_policy=limits.policy,
        eviction_policy=settings.eviction_policy,
        enable_prefix_caching=limits.enable_prefix_caching,
        enable_chunked_prefill=limits.enable_chunked_prefill,
        windows=limits.windows,
    )


def _complain(error: Exception, scheduler: Part) -> Complaint:
    """Describe an error; its type is named unless the message is written for the user."""
    file = scheduler.rpartition(":")[0] if isinstance(scheduler, str) else None
    line = _line_of(error, Path(file)) if file else None
    is_told = line is None or error.__cause__ is not None  # of the settings, or while loading
    if isinstance(error, StalledError) or (isinstance(error, ValueError) and is_told):
        return Complaint(str(error), line)
    return Complaint(f"{type(error).__name__}: {error}", line)


def _line_of(error: BaseException, file: Path) -> int | None:
    """Return the last line of a file that an error passed through, or None."""
    while error.__cause__ is not None:  # of an error while the file was loaded
        error = error.__cause__
    places = [(each.filename, each.lineno) for each in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    lines = [line for name, line in places if Path(name).resolve() == file.resolve()]
    return lines[-1] if lines else None
