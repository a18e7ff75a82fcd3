"""Print the results of simulations."""

from collections.abc import Iterator, Sequence
from typing import Any

Outcome = dict[str, Any]
"""The values of the swept options and the results of a simulation, or the reason why it failed
(``error``).
"""

COLUMNS = {
    "num_gpu_blocks": "blocks",
    "request_rate": "rate",
    "request_throughput": "requests/s",
    "output_throughput": "tokens/s",
    "median_ttft_ms": "TTFT ms",
    "p99_ttft_ms": "p99",
    "median_tpot_ms": "TPOT ms",
    "p99_tpot_ms": "p99",
    "spec_decode_acceptance_length": "accepted",
    "prefix_cache_hit_rate": "hits",
    "num_preemptions": "preempted",
    "slo_attainment": "in slo",
}
"""Results in a table of several variants, with their headings."""


def render(outcome: Outcome) -> Iterator[str]:
    """Yield one line per result; results that are None are left out."""
    for name, value in outcome.items():
        if value is not None:
            yield f"{name:<25} {_number(value)}"


def table(outcomes: Sequence[Outcome], swept: Sequence[str]) -> Iterator[str]:
    """Yield a table with one line per variant; failed variants come last, with their errors.

    Args:
        outcomes: the outcomes of the variants.
        swept: names of the options in which the variants differ.
    """
    good = [each for each in outcomes if "error" not in each]
    shown = [
        name
        for name in COLUMNS
        if name not in swept and any(each.get(name) is not None for each in good)
    ]
    head = [*(name.replace("_", "-") for name in swept), *(COLUMNS[name] for name in shown)]
    rows = [[_number(each.get(name)) for name in (*swept, *shown)] for each in good]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    for each in outcomes:
        if "error" in each:
            choice = " ".join(f"{name.replace('_', '-')}={each[name]}" for name in swept)
            yield f"{choice}: {each['error']}"


def _number(value: Any) -> str:
    match value:
        case None:
            return "-"
        case list():
            return ", ".join(_number(each) for each in value)
        case float() if abs(value) < 1000:
            return f"{value:.4g}"
        case float() | int():
            return f"{value:,.0f}"
    return str(value)
