"""Results as text, in the layout of ``vllm bench serve``."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from minimal_vllm_lab.bench.config import METRICS
from minimal_vllm_lab.bench.statistics import Fields

WIDTH = 50
"""Width of the report in characters."""

TOTALS = {
    "completed": "Successful requests",
    "failed": "Failed requests",
    "max_concurrency": "Maximum request concurrency",
    "request_rate": "Request rate configured (RPS)",
    "duration": "Benchmark duration (s)",
    "total_input_tokens": "Total input tokens",
    "total_output_tokens": "Total generated tokens",
    "request_throughput": "Request throughput (req/s)",
    "request_goodput": "Request goodput (req/s)",
    "output_throughput": "Output token throughput (tok/s)",
    "max_output_tokens_per_s": "Peak output token throughput (tok/s)",
    "max_concurrent_requests": "Peak concurrent requests",
    "total_token_throughput": "Total token throughput (tok/s)",
}
"""Labels of result fields, in the order of the lines. Fields whose value is None are left out."""

GUESSES = {
    "spec_decode_acceptance_rate": "Acceptance rate (%)",
    "spec_decode_acceptance_length": "Acceptance length",
    "spec_decode_num_drafts": "Drafts",
    "spec_decode_draft_tokens": "Draft tokens",
    "spec_decode_accepted_tokens": "Accepted tokens",
}
"""Labels of the fields of a server that guessed."""

SUMMARY = (
    "request_rate",
    "request_throughput",
    "output_throughput",
    "median_ttft_ms",
    "median_tpot_ms",
    "failed",
)
"""Columns of the table that compares several rates."""


def serve_report(result: Fields) -> Iterator[str]:
    """Yield the lines of the report of one run."""
    yield f"{' Serving Benchmark Result ':=^{WIDTH}}"
    for name, label in TOTALS.items():
        if result[name] is not None:
            yield _line(label, result[name])
    for metric, heading in METRICS.items():
        ending = f"_{metric}_ms"
        values = {name: value for name, value in result.items() if name.endswith(ending)}
        if values:
            yield f"{heading:-^{WIDTH}}"
        for name, value in values.items():
            statistic = name.removesuffix(ending).capitalize()
            yield _line(f"{statistic} {metric.upper()} (ms)", value)
    if "spec_decode_num_drafts" in result:
        yield from _guesses_report(result)
    yield "=" * WIDTH


def _guesses_report(result: Fields) -> Iterator[str]:
    yield f"{'Speculative Decoding':-^{WIDTH}}"
    for name, label in GUESSES.items():
        yield _line(label, result[name])
    yield "Per-position acceptance (%):"
    for position, rate in enumerate(result["spec_decode_per_position_acceptance_rates"]):
        yield _line(f"  Position {position}", 100 * rate)


def errors_report(result: Fields) -> Iterator[str]:
    """Yield the reasons why requests failed, the most common first."""
    for error, count in Counter(filter(None, result["errors"])).most_common():
        yield f"{count} of {result['num_prompts']} requests failed: {error}"


def sweep_table(results: Sequence[Fields]) -> Iterator[str]:
    """Yield the lines of a table with one row per rate."""
    for row in [SUMMARY, *([_number(each.get(name)) for name in SUMMARY] for each in results)]:
        yield "  ".join(cell.rjust(len(name)) for cell, name in zip(row, SUMMARY, strict=True))


def _line(label: str, value: Any) -> str:
    return f"{label + ':':<40} {_number(value)}"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
