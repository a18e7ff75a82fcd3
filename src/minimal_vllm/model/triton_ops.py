"""The operations of ``ops`` by our own kernels, for a GPU."""

from typing import TYPE_CHECKING

from torch import Tensor, mm
from torch.nn.functional import linear

from minimal_vllm.model.kernels.gate import silu_and_mul
from minimal_vllm.model.kernels.gated_product import gated_product, is_for_gated_product
from minimal_vllm.model.kernels.heads import norm_rotate_store
from minimal_vllm.model.kernels.matvec import add_norm_matvec, is_for_matvec, matvec
from minimal_vllm.model.kernels.norm import add_norm
from minimal_vllm.model.kernels.split import is_for_split, split_linear
from minimal_vllm.model.ops import Heads, Rotation

if TYPE_CHECKING:
    import torch

    from minimal_vllm.attention.metadata import AttentionMetadata
    from minimal_vllm.cache.kv_cache import LayerCache
    from minimal_vllm.model.layers import Linear, RMSNorm, SelfAttention


class TritonOps:
    """See ``Ops``. Products are ours where that is faster than the library's."""

    def rotation(self, table: Tensor, positions: Tensor, dtype: "torch.dtype") -> Rotation:  # noqa: ARG002
        """The kernel looks the angles up itself."""
        return table, positions

    def add_norm(
        self, residual: Tensor, x: Tensor | None, norm: "RMSNorm"
    ) -> tuple[Tensor, Tensor]:
        """One kernel."""
        return add_norm(residual, x, norm.weight, norm.eps)

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """One kernel: ours for one token, else the library's."""
        if is_for_matvec(x):
            return matvec(x, weight, bias, out)
        if out is not None and bias is None:
            return mm(x, weight.T, out=out)
        return linear(x, weight, bias)

    def linear_to_add(self, x: Tensor, proj: "Linear") -> Tensor:
        """One kernel; for some tokens and few columns in parts, ``[parts, T, hidden]`` float32."""
        if not is_for_matvec(x) and is_for_split(x, proj.weight):
            return split_linear(x, proj.weight, proj.bias)
        return self.linear(x, proj.weight, proj.bias)

    def add_norm_linear(
        self, residual: Tensor, x: Tensor | None, norm: "RMSNorm", proj: "Linear"
    ) -> tuple[Tensor, Tensor]:
        """One kernel for one token, else two."""
        if is_for_matvec(residual):
            return add_norm_matvec(residual, x, norm.weight, norm.eps, proj.weight, proj.bias)
        residual, normed = self.add_norm(residual, x, norm)
        return residual, linear(normed, proj.weight, proj.bias)

    def add_norm_gate(
        self, residual: Tensor, x: Tensor | None, norm: "RMSNorm", gate_up: "Linear"
    ) -> tuple[Tensor, Tensor]:
        """One kernel for one token, two for very many, else three."""
        if is_for_matvec(residual):
            return add_norm_matvec(
                residual, x, norm.weight, norm.eps, gate_up.weight, gate_up.bias, gates=True
            )
        residual, normed = self.add_norm(residual, x, norm)
        if is_for_gated_product(normed, gate_up.weight, gate_up.bias):
            return residual, gated_product(normed, gate_up.weight)
        return residual, silu_and_mul(linear(normed, gate_up.weight, gate_up.bias))

    def norm_rotate_store(
        self,
        qkv: Tensor,
        layer: "SelfAttention",
        rotation: Rotation,
        cache: "LayerCache",
        metadata: "AttentionMetadata",
    ) -> Heads:
        """One kernel, in place."""
        table, positions = rotation
        norms = (
            (layer.q_norm.weight, layer.k_norm.weight) if layer.q_norm and layer.k_norm else None
        )
        norm_rotate_store(
            qkv,
            norms,
            layer.q_norm.eps if layer.q_norm else 0.0,
            table if layer.rope else None,
            positions,
            metadata.slots,
            cache,
        )
        sizes = [layer.num_heads, layer.num_kv_heads, layer.num_kv_heads]
        q, k, v = qkv.view(len(qkv), -1, layer.head_dim).split_with_sizes(sizes, dim=1)
        return q, k, v
