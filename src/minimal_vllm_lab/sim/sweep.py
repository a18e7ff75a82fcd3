"""Sweeps: variants of one simulation that differ in some options."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product

from minimal_vllm_lab.sim.config import ENGINE_OPTIONS, SimulationConfig


def parse_sweep(text: str) -> tuple[str, list[str]]:
    """Parse ``eviction-policy=lru,lfu`` to the name of an option and its values.

    Raises:
        ValueError: the text does not have this form.
    """
    name, separator, values = text.partition("=")
    nonempty = [value for value in values.split(",") if value]
    if not separator or not nonempty:
        raise ValueError(
            f"a sweep is an option and its values, such as gpu=h100,h200, not {text!r}"
        )
    return name.strip("-").replace("-", "_"), nonempty


def variants(
    config: SimulationConfig, sweeps: Sequence[tuple[str, Sequence[str]]]
) -> Iterator[tuple[dict[str, str], SimulationConfig]]:
    """Yield each combination of the swept values, and the configuration with these values.

    Args:
        config: configuration to vary.
        sweeps: names of options, each with its values.

    Raises:
        ValueError: there is no such option, a value is invalid, or an option has no effect.
    """
    names = [name for name, _ in sweeps]
    for values in product(*(choices for _, choices in sweeps)):
        choice = dict(zip(names, values, strict=True))
        yield choice, override(config, choice)


def override(config: SimulationConfig, choice: Mapping[str, str]) -> SimulationConfig:
    """Return the configuration with other values for some fields of any of its sections.

    Args:
        config: configuration to change.
        choice: field name -> value.

    Raises:
        ValueError: there is no such field, a value is invalid, or a field has no effect on
            this workload.
    """
    for name, value in choice.items():
        section = _section_with(config, name)
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
        check_effect(config, section, [name])
    return config


def check_effect(config: SimulationConfig, section: str, names: Iterable[str]) -> None:
    """Check that setting these fields of a section makes a difference.

    Raises:
        ValueError: it makes none.
    """
    options = ", ".join(f"--{name.replace('_', '-')}" for name in names)
    if options and section == "synthetic" and config.traffic.workload != "synthetic":
        raise ValueError(f"{options}: only applies to the synthetic workload")
    if options and section == "guessing" and not config.engine.speculative_config:
        raise ValueError(f"{options}: only applies with --speculative-config")
    if options and section == "achieved" and config.fleet.cost_model:
        raise ValueError(f"{options}: has no effect with a fitted cost_model")


def _section_with(config: SimulationConfig, name: str) -> str:
    """Return the name of the configuration's section that has this field."""
    for section in fields(config):
        names = {field.name for field in fields(getattr(config, section.name))}
        if name in (names & ENGINE_OPTIONS if section.name == "engine" else names):
            return section.name
    raise ValueError(f"there is no option --{name.replace('_', '-')} to sweep over")
