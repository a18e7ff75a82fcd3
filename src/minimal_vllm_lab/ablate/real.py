"""Measurement with a real engine: requests are sent as they arrive."""

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.backends import runs_ahead
from minimal_vllm.engine.build import BuiltEngine, build_engine
from minimal_vllm.engine.engine import Engine
from minimal_vllm.outputs import OutputKind
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.trace.facts import engine_facts
from minimal_vllm.trace.step_record import Listener, Record, StepRecord
from minimal_vllm.trace.writer import TraceWriter
from minimal_vllm_lab.ablate.clock import Clock
from minimal_vllm_lab.ablate.memory import MemoryWatch
from minimal_vllm_lab.ablate.workload import fitting_jobs
from minimal_vllm_lab.bench.statistics import Fields, Outcome, serve_result
from minimal_vllm_lab.sim.config import SimulationConfig
from minimal_vllm_lab.sim.job import Job
from minimal_vllm_lab.sim.presets import PRESETS

METRICS = ("ttft", "tpot", "itl", "e2el")
"""Latencies to report."""


@dataclass(slots=True)
class StepCount:
    """Observer that counts steps and preemptions."""

    num_steps: int = 0
    num_preemptions: int = 0
    last: StepRecord | None = None
    """Record of the last step."""

    def __call__(self, record: StepRecord) -> None:
        """Count a step."""
        self.num_steps += 1
        self.num_preemptions += len(record.preempted)
        self.last = record


def settle(config: EngineConfig) -> EngineConfig:
    """Return the configuration with all choices made that the engine would make on this machine.

    All variants then have the same device, pool size, maximum length and token budget.

    Raises:
        ValueError: the engine can't be built, see ``build_engine``, or the weights of a
            preset are requested.
    """
    with model_folder(config) as found:
        built = build_engine(found)
    limits = built.scheduler_config
    settled = replace(
        config,
        device="cuda" if built.device.type == "cuda" else "cpu",
        num_gpu_blocks_override=built.num_blocks,
        max_model_len=limits.max_model_len,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        async_scheduling=runs_ahead(config, built.device),
    )
    del built
    _give_memory_back()
    return settled


def use_one_thread() -> None:
    """Limit PyTorch to one thread, so that CPU time and real time agree."""
    torch.set_num_threads(1)


class Gate(Listener):
    """Listener that passes records on to trace writers once it is open."""

    def __init__(self, others: Sequence[TraceWriter]) -> None:
        self.is_open = False
        self._others = others

    def __call__(self, record: Record) -> None:
        """Pass a record on if the gate is open."""
        if self.is_open:
            for other in self._others:
                other(record)


def really_run(
    config: SimulationConfig, clock: Clock, writers: Sequence[TraceWriter] = ()
) -> Fields:
    """Build the engine, serve the workload and return the measured numbers.

    Args:
        config: engine and workload.
        clock: determines when requests arrive and how long they take.
        writers: write traces of everything after the warm-up.

    Raises:
        ValueError: the engine can't be built, or a request failed.
    """
    count, watch, gate = StepCount(), MemoryWatch(), Gate(writers)
    with model_folder(config.engine) as engine:
        built = build_engine(engine, observers=[count, gate] if writers else [count])
    jobs = fitting_jobs(config, built.files.config.vocab_size, built.scheduler_config.max_model_len)
    _warm_up(built, jobs, clock)
    before, count.num_steps, count.num_preemptions = count.last, 0, 0
    for writer in writers:
        writer.begin(engine_facts(config.engine, built), spell=None)
    gate.is_open = True
    outcomes = drive(built.engine, jobs, watch, clock)
    after = count.last
    assert before is not None and after is not None  # noqa: S101, PT018 - there are requests
    queries = after.prefix_queries - before.prefix_queries
    ends = [each.start_time + each.latency for each in outcomes]
    duration = max(ends) - outcomes[0].start_time + jobs[0].arrival
    result = {
        **serve_result(outcomes, duration, None, METRICS, [99]),
        "prefix_cache_hit_rate": (after.prefix_hits - before.prefix_hits) / max(1, queries),
        "num_preemptions": count.num_preemptions,
        "num_steps": count.num_steps,
        **watch.result(),
    }
    del built
    _give_memory_back()
    return result


def drive(engine: Engine, jobs: Sequence[Job], watch: MemoryWatch, clock: Clock) -> list[Outcome]:
    """Serve all jobs, each from its arrival on; return an outcome for each.

    Args:
        engine: engine without unfinished requests.
        jobs: requests in order of arrival.
        watch: takes samples of the engine's memory.
        clock: determines when requests arrive and how long they take.

    Raises:
        ValueError: a request failed.
    """
    start = clock.now()
    outcomes = [Outcome(len(job.prompt), start + job.arrival) for job in jobs]
    num_sent = 0
    while num_sent < len(jobs) or engine.has_unfinished_requests:
        now = clock.now()
        while num_sent < len(jobs) and outcomes[num_sent].start_time <= now:
            _send(engine, str(num_sent), jobs[num_sent])
            num_sent += 1
        if not engine.has_unfinished_requests:
            watch.sample(engine.scheduler, now)
            clock.wait(outcomes[num_sent].start_time - now)
            continue
        outputs = engine.step()
        now = clock.now()
        for output in outputs:
            (completion,) = output.outputs
            if completion.finish_reason == "error":
                raise ValueError(f"the engine failed: {completion.stop_reason}")
            outcome = outcomes[int(output.request_id)]
            outcome.note_token(now)
            outcome.output_tokens += len(completion.token_ids)
        watch.sample(engine.scheduler, now)
    return outcomes


def _send(engine: Engine, request_id: str, job: Job) -> None:
    params = SamplingParams(
        temperature=0.0, max_tokens=job.num_output_tokens, ignore_eos=True, detokenize=False
    )
    engine.add_request(request_id, job.prompt.tolist(), params, output_kind=OutputKind.DELTA)


def _warm_up(built: BuiltEngine, jobs: Sequence[Job], clock: Clock) -> None:
    """Serve some requests to touch memory and, on a GPU, to compile all size-dependent code."""
    on_gpu = built.device.type == "cuda"
    chosen = jobs if on_gpu else [replace(job, num_output_tokens=2) for job in jobs[:4]]
    drive(built.engine, [replace(job, arrival=0.0) for job in chosen], MemoryWatch(), clock)
    built.engine.reset()


@contextmanager
def model_folder(config: EngineConfig) -> Iterator[EngineConfig]:
    """Yield the configuration with a folder for its model, also if that is a simulator's preset.

    For a preset, a temporary folder with its config.json is made.

    Raises:
        ValueError: the weights of a preset are requested.
    """
    preset = PRESETS.get(config.model.lower())
    if preset is None:
        yield config
        return
    if config.load_format != "dummy":
        raise ValueError(
            f"only the shape of {config.model} is known: run it with --load-format dummy, or "
            f"--simulate it"
        )
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(preset), encoding="utf-8")
        yield replace(config, model=folder)


def _give_memory_back() -> None:
    """Free the GPU's memory for the next engine."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
