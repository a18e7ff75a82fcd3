"""A comparison of simulations, drawn by matplotlib."""

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


def plot_outcomes(outcomes: Sequence[dict[str, Any]], swept: Sequence[str], path: Path) -> None:
    """One panel for each number, over the option that was swept last.

    Args:
        outcomes: of the variants, each with the values of the swept options.
        swept: the options' names; each combination of the other values is a line.
        path: the file to draw to; its suffix says in which format.

    Raises:
        ValueError: nothing could be simulated, or there is no such format.
    """
    good = [each for each in outcomes if "error" not in each]
    if not good:
        raise ValueError("there is nothing to draw: no variant could be simulated")
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
