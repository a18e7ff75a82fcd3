"""Latency against the rate of requests, drawn by matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from minimal_vllm_lab.bench.config import METRICS, Load
from minimal_vllm_lab.bench.statistics import Fields


def check_format(path: str) -> None:
    """See whether this file can be drawn to.

    Raises:
        ValueError: there is no format, or no folder, of its name.
    """
    known = Figure().canvas.get_supported_filetypes()
    if Path(path).suffix.removeprefix(".").lower() not in known:
        raise ValueError(f"{path} can't be drawn: its suffix should be one of {', '.join(known)}")
    if not Path(path).parent.is_dir():
        raise ValueError(f"{path} can't be drawn: there is no such folder")


def plot_latencies(results: Sequence[Fields], load: Load, path: str) -> None:
    """One panel for each metric: median and percentiles over the rates.

    Args:
        results: with finite rates.
        load: says what was measured.
        path: the file to draw to.
    """
    names = load.percentile_metrics.split(",")
    statistics = ["median", *(f"p{each:g}" for each in load.percentiles)]
    by_rate = sorted(results, key=lambda result: float(result["request_rate"]))
    rates = [result["request_rate"] for result in by_rate]
    figure = Figure(figsize=(4.5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for statistic in statistics:
            values = [result[f"{statistic}_{name}_ms"] for result in by_rate]
            axes.plot(rates, values, marker="o", label=statistic)
        axes.set(title=METRICS[name], xlabel="requests per second", ylabel="ms")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"{results[0]['model_id']}, {results[0]['num_prompts']} requests each")
    figure.savefig(path)
