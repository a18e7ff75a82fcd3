"""Plot of latencies over request rates."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from minimal_vllm_lab.bench.config import METRICS, Load
from minimal_vllm_lab.bench.statistics import Fields


def check_format(path: str) -> None:
    """Check that a plot can be written to this path.

    Raises:
        ValueError: the suffix is not a supported format, or the folder does not exist.
    """
    known = Figure().canvas.get_supported_filetypes()
    if Path(path).suffix.removeprefix(".").lower() not in known:
        raise ValueError(f"can't plot to {path}: its suffix must be one of {', '.join(known)}")
    if not Path(path).parent.is_dir():
        raise ValueError(f"can't plot to {path}: its folder does not exist")


def plot_latencies(results: Sequence[Fields], load: Load, path: str) -> None:
    """Plot each latency in its own panel: median and percentiles over the rates.

    Args:
        results: results at finite rates.
        load: selects the latencies and percentiles.
        path: file to write.
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
