"""One workload, served with all ideas and then without each: what is each worth?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from types import MappingProxyType
from typing import Any

from minimal_vllm.config import EngineConfig
from minimal_vllm.trace.writer import TraceWriter
from minimal_vllm_lab.ablate.ideas import ALL_ON, IDEAS, Idea, without
from minimal_vllm_lab.bench.statistics import Fields
from minimal_vllm_lab.sim.config import SimulationConfig

Measure = Callable[[SimulationConfig, Sequence[TraceWriter]], Fields]
"""Serves a workload, of which these write traces; the numbers, by the names of ``vllm bench serve``
where it has one."""


@dataclass(frozen=True)
class Stage:
    """Where workloads are served: on this machine, or in a simulation."""

    settle: Callable[[SimulationConfig], EngineConfig]
    """Decides what the engine would decide, once for all variants."""
    measure: Measure


def this_machine(*, cpu_time: bool) -> Stage:
    """The real engine, which imports torch; reckoned in real time, or in this process's."""
    from minimal_vllm_lab.ablate.clock import CpuClock, WallClock
    from minimal_vllm_lab.ablate.real import really_run, settle, use_one_thread

    clock = CpuClock() if cpu_time else WallClock()
    if cpu_time:
        use_one_thread()
    return Stage(
        lambda config: settle(config.engine),
        lambda config, writers: really_run(config, clock, writers),
    )


def simulation() -> Stage:
    """A cost model in the model's place."""
    from minimal_vllm_lab.ablate.simulated import run_simulated, settle_simulated

    return Stage(settle_simulated, run_simulated)


def possible_ideas(config: EngineConfig, chosen: Sequence[str], *, simulated: bool) -> list[str]:
    """The names of the ideas to switch off, in their order.

    Args:
        config: settled.
        chosen: by the user; empty: all that are on.
        simulated: whether it is.

    Raises:
        ValueError: one that was chosen is not on anyway.
    """
    possible = [name for name in IDEAS if _is_on(name, config, simulated)]
    for name in chosen:
        if name not in possible:
            raise ValueError(f"{name} is not on here, so that nothing can be seen without it")
    return [name for name in possible if not chosen or name in chosen]


def _is_on(name: str, config: EngineConfig, simulated: bool) -> bool:
    idea = IDEAS[name]
    if idea.on_gpu and (simulated or not _has_own_kernels(config)):
        return False
    return any(getattr(config, field) != value for field, value in idea.changes.items())


def _has_own_kernels(config: EngineConfig) -> bool:
    backend = config.attention_backend
    return config.device == "cuda" and backend in ("auto", "triton") and config.sampler is None


def run_study(
    config: SimulationConfig,
    names: Sequence[str],
    measure: Measure,
    repeats: int,
    writers: Mapping[str, TraceWriter] = MappingProxyType({}),
) -> Iterator[tuple[str, Fields]]:
    """Results as they come: with all ideas, then without each of these; then all that again.

    Args:
        config: settled, with the workload.
        names: of ideas.
        measure: see ``Stage``.
        repeats: how often.
        writers: by the names of variants; each writes a trace of the first time.
    """
    variants = {ALL_ON: config} | {name: config_without(config, IDEAS[name]) for name in names}
    for repeat in range(repeats):
        for name, variant in variants.items():
            is_written = repeat == 0 and name in writers
            yield name, measure(variant, [writers[name]] if is_written else [])


def medians(runs: Sequence[tuple[str, Fields]]) -> list[Fields]:
    """One result for each variant, in their order: each number's median over its runs."""
    by_name: dict[str, list[Fields]] = {}
    for name, result in runs:
        by_name.setdefault(name, []).append(result)
    return [
        {"idea": name, "instead": "" if name == ALL_ON else IDEAS[name].instead}
        | {key: _median([each[key] for each in results]) for key in results[0]}
        for name, results in by_name.items()
    ]


def _median(values: Sequence[Any]) -> Any:
    if isinstance(values[0], dict):
        common = [key for key in values[0] if all(key in each for each in values)]
        return {key: _median([each[key] for each in values]) for key in common}
    known = [value for value in values if value is not None]
    return median(known) if known else None


def config_without(config: SimulationConfig, idea: Idea) -> SimulationConfig:
    """The same with an idea switched off; ``config`` is settled."""
    max_model_len = config.engine.max_model_len
    assert max_model_len is not None  # noqa: S101 - it is settled
    return replace(config, engine=without(idea, config.engine, max_model_len))
