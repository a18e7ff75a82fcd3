"""Snapshots of metrics as Python objects, with the names of vLLM's ``v1/metrics/reader.py``."""

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family


@dataclass(frozen=True)
class Metric:
    """The value of a metric for one set of labels."""

    name: str
    """Name, which begins with ``vllm:``."""
    labels: dict[str, str]
    """Values of the labels."""


@dataclass(frozen=True)
class Counter(Metric):
    """A number that only grows."""

    value: int
    """The count."""


@dataclass(frozen=True)
class Vector(Metric):
    """Several counters, one per position. Only speculative decoding has such metrics."""

    values: list[int]
    """The count of each position."""


@dataclass(frozen=True)
class Gauge(Metric):
    """A number that grows and shrinks."""

    value: float
    """The number."""


@dataclass(frozen=True)
class Histogram(Metric):
    """Counts of observations by size."""

    count: int
    """Number of observations."""
    sum: float
    """Sum of all observations."""
    buckets: dict[str, int]
    """Number of observations that are at most as large as the key; the last key is ``+Inf``."""


def read_metrics(registry: CollectorRegistry) -> list[Metric]:
    """Return a snapshot of all metrics in a registry, one for each name and set of labels."""
    return [metric for family in registry.collect() for metric in _read(family)]


def _read(family: Family) -> Iterator[Metric]:
    if family.type == "histogram":
        yield from _read_histograms(family)
    if family.name.endswith("_per_pos"):
        yield from _read_vectors(family)
        return
    for sample in family.samples:
        if family.type == "gauge":
            yield Gauge(family.name, sample.labels, sample.value)
        elif family.type == "counter" and sample.name == f"{family.name}_total":
            yield Counter(family.name, sample.labels, int(sample.value))


def _read_vectors(family: Family) -> Iterator[Vector]:
    """Yield a vector for each set of the other labels; it ends with the last position counted."""
    values: dict[tuple[tuple[str, str], ...], dict[int, int]] = {}
    for sample in family.samples:
        if sample.name == f"{family.name}_total":
            labels = {**sample.labels}
            position = int(labels.pop("position"))
            values.setdefault(tuple(labels.items()), {})[position] = int(sample.value)
    for others, counts in values.items():
        in_order = [counts.get(position, 0) for position in range(max(counts) + 1)]
        yield Vector(family.name, dict(others), in_order)


def _read_histograms(family: Family) -> Iterator[Histogram]:
    """Yield a histogram for each set of labels; its buckets precede its count and its sum."""
    buckets: dict[str, int] = {}
    count = 0
    for sample in family.samples:
        if sample.name == f"{family.name}_bucket":
            buckets[sample.labels["le"]] = int(sample.value)
        elif sample.name == f"{family.name}_count":
            count = int(sample.value)
        elif sample.name == f"{family.name}_sum":
            yield Histogram(family.name, sample.labels, count, sample.value, buckets)
            buckets = {}
