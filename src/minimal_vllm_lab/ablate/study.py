"""Ablation study: one workload served with all ideas, then without each of them."""

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
"""Function that serves a workload and returns the measured numbers.

The second argument is a list of writers for traces of the run. Numbers are named as in vLLM's
benchmark where possible.
"""


@dataclass(frozen=True)
class Stage:
    """Setting of an experiment: an engine on this machine, or a simulation."""

    settle: Callable[[SimulationConfig], EngineConfig]
    """Makes all choices that the engine would make, so that they are the same in all variants."""
    measure: Measure
    """Serves a workload."""


def this_machine(*, cpu_time: bool) -> Stage:
    """Return the stage for the real engine, which imports torch.

    Args:
        cpu_time: whether to measure the CPU time of this process instead of real time.
    """
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
    """Return the stage for a simulated engine, with a cost model in place of the model."""
    from minimal_vllm_lab.ablate.simulated import run_simulated, settle_simulated

    return Stage(settle_simulated, run_simulated)


def possible_ideas(config: EngineConfig, chosen: Sequence[str], *, simulated: bool) -> list[str]:
    """Return the names of the ideas to switch off, in their fixed order.

    Args:
        config: configuration with all automatic choices made, see ``Stage.settle``.
        chosen: names chosen by the user. Empty: all ideas that are on.
        simulated: whether the engine is simulated.

    Raises:
        ValueError: a chosen idea is not on in this configuration.
    """
    possible = [name for name in IDEAS if _is_on(name, config, simulated)]
    for name in chosen:
        if name not in possible:
            raise ValueError(f"{name} is not on here: switching it off would change nothing")
    return [name for name in possible if not chosen or name in chosen]


def _is_on(name: str, config: EngineConfig, simulated: bool) -> bool:
    idea = IDEAS[name]
    if idea.on_gpu and (simulated or not _has_own_kernels(config)):
        return False
    if config.speculative_config is not None and "scheduler" in idea.changes:
        return False  # only the built-in scheduler plans guesses
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
    """Yield (variant's name, result) pairs: all ideas on, then without each idea, repeatedly.

    Args:
        config: configuration with the workload and all automatic choices made, see
            ``Stage.settle``.
        names: names of the ideas to switch off.
        measure: serves the workload and returns the numbers.
        repeats: number of times to run all variants.
        writers: trace writers by variant. They write the first repetition only.
    """
    variants = {ALL_ON: config} | {name: config_without(config, IDEAS[name]) for name in names}
    for repeat in range(repeats):
        for name, variant in variants.items():
            is_written = repeat == 0 and name in writers
            yield name, measure(variant, [writers[name]] if is_written else [])


def medians(runs: Sequence[tuple[str, Fields]]) -> list[Fields]:
    """Return one result per variant, in order: the median of each number over its runs."""
    by_name: dict[str, list[Fields]] = {}
    for name, result in runs:
        by_name.setdefault(name, []).append(result)
    return [
        {"idea": name, "instead": "" if name == ALL_ON else IDEAS[name].instead}
        | {key: _median([each[key] for each in results]) for key in results[0]}
        for name, results in by_name.items()
    ]


def _median(values: Sequence[Any]) -> Any:
    """Return the median of values that are not None; of dictionaries, the median per common key."""
    if isinstance(values[0], dict):
        common = [key for key in values[0] if all(key in each for each in values)]
        return {key: _median([each[key] for each in values]) for key in common}
    known = [value for value in values if value is not None]
    return median(known) if known else None


def config_without(config: SimulationConfig, idea: Idea) -> SimulationConfig:
    """Return a configuration with an idea switched off.

    Args:
        config: configuration with all automatic choices made, see ``Stage.settle``.
        idea: idea to switch off.
    """
    max_model_len = config.engine.max_model_len
    assert max_model_len is not None  # noqa: S101 - settled configurations have one
    return replace(config, engine=without(idea, config.engine, max_model_len))
