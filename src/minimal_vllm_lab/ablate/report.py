"""Result of a study as tables of text."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from minimal_vllm_lab.bench.statistics import Fields

TIME = {
    "output_throughput": "tokens/s",
    "median_ttft_ms": "TTFT ms",
    "p99_ttft_ms": "p99",
    "median_itl_ms": "ITL ms",
    "p99_itl_ms": "p99",
}
"""Headings of the first table, by the names of the result fields."""

MEMORY = {
    "mean_running": "running",
    "peak_blocks": "blocks",
    "kv_waste": "waste",
    "prefix_cache_hit_rate": "hits",
    "num_preemptions": "preempted",
}
"""Headings of the second table, likewise."""

SHARES = {"kv_waste", "prefix_cache_hit_rate"}
"""Fields that are fractions."""


def tables(results: Sequence[Fields]) -> Iterator[str]:
    """Yield the lines of two tables, each with one row per result: times, then memory.

    Each fits into a terminal of 80 columns. The last column of times compares the throughput with
    that of the first result.
    """
    full = results[0]["output_throughput"]
    compared = [f"{each['output_throughput'] / full:.2f} x" for each in results]
    compared[0] = ""
    yield from _aligned(
        ["without", *TIME.values(), ""],
        *([*_row(each, TIME), last] for each, last in zip(results, compared, strict=True)),
    )
    yield ""
    yield from _aligned(["without", *MEMORY.values()], *(_row(each, MEMORY) for each in results))


def _row(result: Fields, names: Iterable[str]) -> list[str]:
    return [result["idea"], *(_number(name, result[name]) for name in names)]


def _aligned(*rows: Sequence[str]) -> Iterator[str]:
    """Yield rows as lines; all columns but the first are aligned at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()


def _number(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:,.1f}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"
