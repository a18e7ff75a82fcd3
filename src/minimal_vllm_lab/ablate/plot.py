"""A study as bars, drawn by matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from minimal_vllm_lab.bench.statistics import Fields

PANELS = {
    "output_throughput": "output tokens per second",
    "p99_ttft_ms": "time to first token, p99 (ms)",
    "p99_itl_ms": "between two tokens, p99 (ms)",
    "kv_waste": "KV slots held without a token",
}
ON_LIGHT_AND_DARK = {
    "text.color": "#808890",
    "axes.labelcolor": "#808890",
    "axes.edgecolor": "#808890",
    "xtick.color": "#808890",
    "ytick.color": "#808890",
    "svg.fonttype": "none",
    "svg.hashsalt": "minimal-vllm",
}
WITH_ALL, WITHOUT = "#2a9d6f", "#c77d3b"


def plot_study(results: Sequence[Fields], path: Path) -> None:
    """A panel for each number, with a bar for each variant.

    Args:
        results: of all ideas together first.
        path: the file to draw to; its suffix says in which format.

    Raises:
        ValueError: there is no such format.
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
