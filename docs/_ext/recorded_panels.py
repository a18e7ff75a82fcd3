"""The runs of which chapters show panels of the view, and the step that each shows first.

A page has the picture ``images/panels/NAME.png``, which ``panel_pictures.py`` takes; the built site
puts the panels themselves in its place.
"""

import gzip
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

from minimal_vllm_lab.view.playground import PlaygroundSettings, play


@dataclass(frozen=True)
class RecordedPanels:
    """Panels of the view at a step of a recorded run."""

    step: int
    changes: Mapping[str, Any] = field(hash=False)
    """Fields of ``PlaygroundSettings`` that differ from their defaults."""
    panels: tuple[str, ...] = ("pool", "batch")
    """Ids of the panels: pool, near, batch, queue or numbers."""
    request: int | None = None
    """Number of the request that is selected. None: no request is."""

    @property
    def settings(self) -> PlaygroundSettings:
        """All settings of the run."""
        return PlaygroundSettings(**self.changes)

    @property
    def run(self) -> str:
        """Name of the run's file, the same for the same settings."""
        return f"{sha256(repr(self.settings).encode()).hexdigest()[:12]}.trace"

    @property
    def query(self) -> str:
        """Query with which the view's page shows the panels."""
        selected = {} if self.request is None else {"request": self.request}
        shown = {"panels": ",".join(self.panels), "file": f"runs/{self.run}", "step": self.step}
        return urlencode({**shown, **selected}, safe=",/")

    @property
    def change(self) -> str:
        """Fragment with which the playground opens the same run at the same step."""
        default = asdict(PlaygroundSettings())
        changed = {
            name: value for name, value in asdict(self.settings).items() if value != default[name]
        }
        return urlencode({**changed, "step": self.step})


@lru_cache(maxsize=64)
def record(settings: PlaygroundSettings) -> bytes:
    """Return the compressed trace of a run.

    Raises:
        ValueError: the run ended early.
    """
    run = play(settings)
    if run.complaint:
        raise ValueError(run.complaint.message)
    return gzip.compress(b"".join(run.lines), mtime=0)


PANELS = {
    "paging": RecordedPanels(
        step=15,
        panels=("pool",),
        changes={
            "num_gpu_blocks_override": 20,
            "enable_prefix_caching": False,
            "requests_per_100_steps": 16,
            "prompt_tokens": 20,
            "output_tokens": 24,
            "shared_prefix_tokens": 0,
            "num_steps": 80,
        },
    ),
    "prefix-caching": RecordedPanels(
        step=14,
        request=4,
        panels=("pool", "near"),
        changes={"prompt_tokens": 40, "shared_prefix_tokens": 24, "num_steps": 80},
    ),
    "continuous-batching": RecordedPanels(
        step=24,
        panels=("batch",),
        changes={
            "max_num_seqs": 4,
            "num_gpu_blocks_override": 32,
            "requests_per_100_steps": 22,
            "prompt_tokens": 16,
            "output_tokens": 14,
            "num_steps": 80,
        },
    ),
    "chunked-prefill": RecordedPanels(
        step=36,
        panels=("batch",),
        changes={
            "max_num_batched_tokens": 16,
            "num_gpu_blocks_override": 48,
            "requests_per_100_steps": 8,
            "prompt_tokens": 60,
            "shared_prefix_tokens": 0,
            "num_steps": 80,
        },
    ),
    "preemption": RecordedPanels(
        step=21,
        changes={
            "num_gpu_blocks_override": 12,
            "requests_per_100_steps": 20,
            "prompt_tokens": 20,
            "shared_prefix_tokens": 0,
            "num_steps": 80,
        },
    ),
    "windows": RecordedPanels(
        step=12,
        request=1,
        panels=("pool", "near"),
        changes={
            "sliding_window": 16,
            "num_gpu_blocks_override": 40,
            "requests_per_100_steps": 6,
            "prompt_tokens": 30,
            "output_tokens": 40,
            "shared_prefix_tokens": 0,
            "num_steps": 80,
        },
    ),
}
"""The panels by the names of their pictures."""
