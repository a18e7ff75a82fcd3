"""Result of a study as a table of text."""

from collections.abc import Iterator, Sequence
from typing import Any

from minimal_vllm_lab.bench.statistics import Fields

COLUMNS = {
    "output_throughput": "tokens/s",
    "median_ttft_ms": "TTFT ms",
    "p99_ttft_ms": "p99",
    "median_itl_ms": "ITL ms",
    "p99_itl_ms": "p99",
    "mean_running": "running",
    "peak_blocks": "blocks",
    "kv_waste": "waste",
    "prefix_cache_hit_rate": "hits",
    "num_preemptions": "preempted",
}
"""Headings of the table, by the names of the result fields."""

SHARES = {"kv_waste", "prefix_cache_hit_rate"}
"""Fields that are fractions."""


def table(results: Sequence[Fields]) -> Iterator[str]:
    """Yield the lines of a table with one row per result.

    The last column compares the throughput with that of the first result.
    """
    full = results[0]["output_throughput"]
    head = ["without", *COLUMNS.values(), ""]
    rows = [
        [
            each["idea"],
            *(_number(name, each[name]) for name in COLUMNS),
            "" if each is results[0] else f"{each['output_throughput'] / full:.2f} x",
        ]
        for each in results
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()


def _number(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:,.1f}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"
