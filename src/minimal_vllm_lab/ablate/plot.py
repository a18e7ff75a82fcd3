"""Bar chart of a study."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from minimal_vllm_lab.bench.statistics import Fields

PANELS = {
    "output_throughput": "output tokens per second",
    "p99_ttft_ms": "time to first token, p99 (ms)",
    "p99_itl_ms": "inter-token latency, p99 (ms)",
    "kv_waste": "held KV slots without a token",
}
"""Title of the panel for each number."""
ON_LIGHT_AND_DARK = {
    "text.color": "#808890",
    "axes.labelcolor": "#808890",
    "axes.edgecolor": "#808890",
    "xtick.color": "#808890",
    "ytick.color": "#808890",
    "svg.fonttype": "none",
    "svg.hashsalt": "minimal-vllm",
}
"""Matplotlib settings for pictures that are readable on light and dark backgrounds."""
WITH_ALL, WITHOUT = "#2a9d6f", "#c77d3b"
"""Colors of the bars."""


def plot_study(results: Sequence[Fields], path: Path) -> None:
    """Plot each number in its own panel, with one bar per variant.

    Args:
        results: results of the variants; the first is the one with all ideas.
        path: file to write; its suffix selects the format.

    Raises:
        ValueError: the format is not supported.
    """
    names = [each["idea"] for each in results]
    labels = [name if index == 0 else f"no {name}" for index, name in enumerate(names)]
    colors = [WITH_ALL, *[WITHOUT] * (len(results) - 1)]
    with rc_context(ON_LIGHT_AND_DARK):
        figure = Figure(figsize=(10, 1.6 + 0.5 * len(results)), layout="constrained")
        for axes, (name, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
            axes.barh(labels, [each[name] or 0.0 for each in results], color=colors)
            axes.invert_yaxis()
            axes.set_title(title, fontsize=10)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
