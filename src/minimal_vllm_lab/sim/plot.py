"""Plot of a comparison of simulations."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PANELS = {
    "output_throughput": "output tokens per second",
    "median_ttft_ms": "TTFT, median (ms)",
    "p99_ttft_ms": "TTFT, 99th percentile (ms)",
    "median_tpot_ms": "TPOT, median (ms)",
    "p99_tpot_ms": "TPOT, 99th percentile (ms)",
    "request_rate": "requests per second",
}
"""Title of the panel for each number."""


def plot_outcomes(outcomes: Sequence[dict[str, Any]], swept: Sequence[str], path: Path) -> None:
    """Plot each number in its own panel, over the option that was swept last.

    Args:
        outcomes: results of the variants, each with its values of the swept options, or with an
            ``error``.
        swept: names of the swept options. Each combination of the others' values is a line.
        path: file to write; its suffix selects the format.

    Raises:
        ValueError: no variant could be simulated, or the format is not supported.
    """
    good = [each for each in outcomes if "error" not in each]
    if not good:
        raise ValueError("there is nothing to plot: no variant could be simulated")
    *others, last = swept
    panels = [name for name in PANELS if name != last and good[0][name] is not None]
    figure = Figure(figsize=(10, 3.2 * -(-len(panels) // 2)), layout="constrained")
    for axes, name in zip(figure.subplots(-(-len(panels) // 2), 2).flat, panels, strict=False):
        for line, group in groupby(good, lambda each: [each[other] for other in others]):
            points = [(str(each[last]), each[name]) for each in group]
            axes.plot(*zip(*points, strict=True), marker="o", label=", ".join(map(str, line)))
        axes.set(title=PANELS[name], xlabel=last.replace("_", "-"), ylim=(0, None))
        axes.grid(alpha=0.3)
        if others:
            axes.legend()
    figure.savefig(path, dpi=120)
