"""The classes that a decoder is built from.

Another kind of projection, norm or attention layer is another entry here; the network that is built
of them stays the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

from minimal_vllm.model.config import Activation, LayerConfig, ModelConfig
from minimal_vllm.model.layers import SelfAttention
from minimal_vllm.model.linear import GatedLinear, Linear, RowLinear
from minimal_vllm.model.norm import RMSNorm
from minimal_vllm.model.rope import Rotary


@dataclass(frozen=True)
class Modules:
    """Makers of the modules of a decoder; by default PyTorch's operations, on any device."""

    linear: Callable[[int, dict[str, int], bool], Linear] = Linear
    """Makes a projection from its input's size, its parts, and whether it has a bias."""
    row_linear: Callable[[int, dict[str, int], bool], RowLinear] = RowLinear
    """Makes a projection that ends a sub-layer, with the same arguments."""
    gated_linear: Callable[[int, int, bool, Activation], GatedLinear] = GatedLinear
    """Makes a gated projection from input and output size, bias, and activation."""
    norm: Callable[[str, int, float], RMSNorm] = RMSNorm
    """Makes a norm from its name in the checkpoint, its size, and its epsilon."""
    attention: "Callable[[ModelConfig, LayerConfig, Modules], SelfAttention]" = SelfAttention
    """Makes a layer's attention, whose projections and norms are made by these makers too."""
    rotary: type[Rotary] = Rotary
    """Prepares rotary embeddings."""


PLAIN_MODULES = Modules()
