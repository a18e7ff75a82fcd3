"""What the model is told of a step, beside its tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minimal_vllm.attention.backend import Attention
    from minimal_vllm.attention.metadata import AttentionMetadata
    from minimal_vllm.model.ops import Ops


@dataclass(frozen=True, slots=True)
class Step:
    """The same for all layers; which request a token belongs to is in ``metadata`` alone."""

    ops: "Ops"
    attention: "Attention"
    metadata: "AttentionMetadata"
    """From ``attention.prepare``."""
