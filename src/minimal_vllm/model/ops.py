"""What a layer does between attention and the residual stream, as seven operations.

They are cut where a GPU gains from computing several steps of a layer at once: each is a line or
two of PyTorch here, and one to three kernels in ``triton_ops``. Which are used is chosen once, with
the attention that they belong to; the layers don't know.
"""

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, cat
from torch.nn.functional import linear, silu

from minimal_vllm.attention.metadata import write_to_cache
from minimal_vllm.model.rope import rotate, rotation

if TYPE_CHECKING:
    import torch

    from minimal_vllm.attention.metadata import AttentionMetadata
    from minimal_vllm.cache.kv_cache import LayerCache
    from minimal_vllm.model.layers import Linear, RMSNorm, SelfAttention

Rotation = Any
"""What ``norm_rotate_store`` wants to know of the tokens' positions; all layers share it."""

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values."""


class Ops(Protocol):
    """All implementations have these signatures and give the same results."""

    def rotation(self, table: Tensor, positions: Tensor, dtype: "torch.dtype") -> Rotation:
        """Prepare for turning the tokens of a step.

        Args:
            table: from ``rope.rope_table``.
            positions: ``[T]`` int64.
            dtype: the model's.
        """
        ...

    def add_norm(
        self, residual: Tensor, x: Tensor | None, norm: "RMSNorm"
    ) -> tuple[Tensor, Tensor]:
        """Add ``x`` to the residual stream, and normalise the sum.

        Args:
            residual: ``[T, hidden]``; may be overwritten, and is not to be used any more.
            x: from ``linear_to_add``; None: nothing is added.
            norm: of the sum.

        Returns:
            The residual stream and the normalised one, each ``[T, hidden]``.
        """
        ...

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """``[T, in]`` -> ``[T, out]``, with weights ``[out, in]``; in ``out``, if given."""
        ...

    def linear_to_add(self, x: Tensor, proj: "Linear") -> Tensor:
        """The product that ends a sub-layer, which the next ``add_norm…`` adds to the stream.

        Returns:
            ``[T, hidden]``, or whatever else the implementation's own ``add_norm`` takes for that.
        """
        ...

    def add_norm_linear(
        self, residual: Tensor, x: Tensor | None, norm: "RMSNorm", proj: "Linear"
    ) -> tuple[Tensor, Tensor]:
        """As ``add_norm``, but with a projection of the normalised stream: ``[T, out]``."""
        ...

    def add_norm_gate(
        self, residual: Tensor, x: Tensor | None, norm: "RMSNorm", gate_up: "Linear"
    ) -> tuple[Tensor, Tensor]:
        """As ``add_norm_linear``, then SwiGLU: ``silu(gate) * up`` of the two halves."""
        ...

    def norm_rotate_store(
        self,
        qkv: Tensor,
        layer: "SelfAttention",
        rotation: Rotation,
        cache: "LayerCache",
        metadata: "AttentionMetadata",
    ) -> Heads:
        """From projected heads to what attention reads.

        Queries and keys are normalised, where the layer does that, and turned by their positions,
        where it does that; keys and values are written to their slots.

        Args:
            qkv: ``[T, (H + 2 K) * D]``; may be overwritten.
            layer: which heads there are, and what is done with them.
            rotation: from ``rotation``.
            cache: the layer's keys and values.
            metadata: says where the tokens' slots are.

        Returns:
            Queries ``[T, H, D]``, and the keys and values that were written, each ``[T, K, D]``.
        """
        ...


class PlainOps:
    """The operations in PyTorch: the CPU's, and the oracle of the others."""

    def rotation(self, table: Tensor, positions: Tensor, dtype: "torch.dtype") -> Rotation:
        """Cosines and sines of each token."""
        return rotation(table, positions, dtype)

    def add_norm(
        self, residual: Tensor, x: Tensor | None, norm: "RMSNorm"
    ) -> tuple[Tensor, Tensor]:
        """In place."""
        if x is not None:
            residual += x
        return residual, norm.forward(residual)

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """PyTorch's."""
        result = linear(x, weight, bias)
        return result if out is None else out.copy_(result)

    def linear_to_add(self, x: Tensor, proj: "Linear") -> Tensor:
        """PyTorch's."""
        return linear(x, proj.weight, proj.bias)

    def add_norm_linear(
        self, residual: Tensor, x: Tensor | None, norm: "RMSNorm", proj: "Linear"
    ) -> tuple[Tensor, Tensor]:
        """One after the other."""
        residual, normed = self.add_norm(residual, x, norm)
        return residual, linear(normed, proj.weight, proj.bias)

    def add_norm_gate(
        self, residual: Tensor, x: Tensor | None, norm: "RMSNorm", gate_up: "Linear"
    ) -> tuple[Tensor, Tensor]:
        """One after the other."""
        residual, both = self.add_norm_linear(residual, x, norm, gate_up)
        gate, up = both.chunk(2, dim=-1)
        return residual, silu(gate).mul_(up)

    def norm_rotate_store(
        self,
        qkv: Tensor,
        layer: "SelfAttention",
        rotation: Rotation,
        cache: "LayerCache",
        metadata: "AttentionMetadata",
    ) -> Heads:
        """One after the other."""
        heads = qkv.view(len(qkv), -1, layer.head_dim)
        qk, v = heads[:, : -layer.num_kv_heads], heads[:, -layer.num_kv_heads :]
        if layer.q_norm and layer.k_norm:
            q, k = qk[:, : layer.num_heads], qk[:, layer.num_heads :]
            qk = cat((layer.q_norm.forward(q), layer.k_norm.forward(k)), dim=1)
        if layer.rope:
            qk = rotate(qk, *rotation)
        q, k = qk[:, : layer.num_heads], qk[:, layer.num_heads :]
        write_to_cache(k, v, cache, metadata)
        return q, k, v
