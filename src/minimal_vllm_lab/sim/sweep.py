"""Variants of one simulation: what would another choice change?"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product

from minimal_vllm_lab.sim.config import ENGINE_OPTIONS, SimulationConfig


def parse_sweep(text: str) -> tuple[str, list[str]]:
    """Read ``eviction-policy=lru,lfu``: the name of an option, and its values.

    Raises:
        ValueError: it is nothing like that.
    """
    name, separator, values = text.partition("=")
    given = [value for value in values.split(",") if value]
    if not separator or not given:
        raise ValueError(
            f"a sweep is an option and its values, such as gpu=h100,h200, not {text!r}"
        )
    return name.strip("-").replace("-", "_"), given


def variants(
    config: SimulationConfig, sweeps: Sequence[tuple[str, Sequence[str]]]
) -> Iterator[tuple[dict[str, str], SimulationConfig]]:
    """Each combination of the values, and the configuration with them.

    Raises:
        ValueError: no option is called so, or a value is not one of its.
    """
    names = [name for name, _ in sweeps]
    for values in product(*(given for _, given in sweeps)):
        choice = dict(zip(names, values, strict=True))
        yield choice, override(config, choice)


def override(config: SimulationConfig, choice: Mapping[str, str]) -> SimulationConfig:
    """The configuration with other values for some fields, whichever part they belong to.

    Raises:
        ValueError: as ``variants``, or if a field has no effect on this workload.
    """
    for name, value in choice.items():
        part = _part_with(config, name)
        config = replace(config, **{part: replace(getattr(config, part), **{name: value})})
        check_effect(config, part, [name])
    return config


def check_effect(config: SimulationConfig, part: str, names: Iterable[str]) -> None:
    """See whether setting these fields of a part makes a difference.

    Raises:
        ValueError: it would not.
    """
    options = ", ".join(f"--{name.replace('_', '-')}" for name in names)
    if options and part == "synthetic" and config.traffic.workload != "synthetic":
        raise ValueError(f"{options}: only for the workload synthetic")
    if options and part == "achieved" and config.fleet.cost_model:
        raise ValueError(f"{options}: no effect on a fitted cost_model")


def _part_with(config: SimulationConfig, name: str) -> str:
    """The part of the configuration that has a field of this name."""
    for part in fields(config):
        names = {field.name for field in fields(getattr(config, part.name))}
        if name in (names & ENGINE_OPTIONS if part.name == "engine" else names):
            return part.name
    raise ValueError(f"there is no option --{name.replace('_', '-')} to sweep over")
