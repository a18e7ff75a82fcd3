"""Quantized weights on a GPU, multiplied by our own kernels and the library's.

Each computes what its base class computes. Products of several tokens with FP8 weights also round
the tokens' numbers to FP8.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.kernels.choose import add_norm_and_choose
from minimal_vllm.model.kernels.few_tokens import MAX_TOKENS
from minimal_vllm.model.kernels.few_tokens_mxfp4 import (
    MAX_PAIRS,
    gated_fragments_of_pairs,
    weighted_fragments_of_pairs,
)
from minimal_vllm.model.kernels.fp8 import (
    can_use_block_product,
    can_use_row_product,
    fp8_block_product,
    fp8_row_product,
)
from minimal_vllm.model.kernels.gate import act_and_mul
from minimal_vllm.model.kernels.grouped_fp8 import gated_fp8_product, weighted_fp8_product
from minimal_vllm.model.kernels.int4 import int4_matvec
from minimal_vllm.model.kernels.int4_product import int4_dequantize, int4_product
from minimal_vllm.model.kernels.matrices import Matrices
from minimal_vllm.model.kernels.matvec import Scales, add_norm_matvec, can_use_matvec, matvec
from minimal_vllm.model.kernels.mxfp4 import gated_fragment_product, weighted_fragment_product
from minimal_vllm.model.kernels.route import ExpertLists, route, route_and_list
from minimal_vllm.model.linear import Linear
from minimal_vllm.model.quantization.convert import Layouts
from minimal_vllm.model.quantization.experts import QuantizedExperts
from minimal_vllm.model.quantization.fp8 import Fp8Weight
from minimal_vllm.model.quantization.int4 import Int4Weight
from minimal_vllm.model.quantization.mxfp4 import Mxfp4Experts
from minimal_vllm.model.quantization.mxfp4_fragments import FragmentMatrices, Fragments
from minimal_vllm.model.supported import Activation
from minimal_vllm.model.triton_modules import KernelExperts, Normed, PartialSums

MANY_TOKENS = 33
"""Number of tokens from which on 4-bit weights are dequantized to memory before the product, which
is then the library's."""


class TritonFp8Weight(Fp8Weight):
    """Matrix in FP8 on a GPU."""

    @property
    def scales(self) -> Scales:
        """Scales of the matrix, as the kernels take them."""
        return Scales(self.scale, self.rows_per_scale, self.columns_per_scale)

    def multiply(
        self, x: Operand, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Multiply; see ``QuantizedWeight.multiply``."""
        if not self.scales.are_usable(self.in_size):
            return super().multiply(x, bias, activation)
        if isinstance(x, Normed):
            return add_norm_matvec(
                x.residual, x.x, x.total, x.weight, x.eps, self.weight, bias,
                activation=activation, scales=self.scales,
            )  # fmt: skip
        x = computed(x)
        if can_use_matvec(x):
            return matvec(x, self.weight, bias, scales=self.scales, activation=activation)
        if self.has_row_scales and can_use_row_product(self.weight):
            return fp8_row_product(x, self.weight, self.scales, bias, activation)
        if can_use_block_product(self.weight, self.scales):
            product = fp8_block_product(x, self.weight, self.scales, bias)
        else:
            return super().multiply(x, bias, activation)
        return product if activation is None else act_and_mul(product, activation)


class TritonInt4Weight(Int4Weight):
    """Matrix in 4-bit integers on a GPU."""

    def multiply(
        self, x: Operand, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Multiply; see ``QuantizedWeight.multiply``."""
        if isinstance(x, Normed):
            return int4_matvec(
                x.residual, self, bias, x=x.x, total=x.total, norm=(x.weight, x.eps),
                activation=activation,
            )  # fmt: skip
        x = computed(x)
        if can_use_matvec(x):
            return int4_matvec(x, self, bias, activation=activation)
        if self.order is not None:
            x = x[:, self.order]
        if len(x) < MANY_TOKENS:
            product = int4_product(x, self, bias)
        else:
            product = linear(x, int4_dequantize(self, x), bias)
        return product if activation is None else act_and_mul(product, activation)


class TritonFp8Experts(KernelExperts, QuantizedExperts):
    """Experts in FP8, which the kernels read as they are."""

    gate_up: TritonFp8Weight
    down: TritonFp8Weight

    def matrices_of_kernels(self) -> tuple[Matrices, Matrices]:
        """Return the matrices; see ``KernelExperts.matrices_of_kernels``."""
        gate_up, down = (
            Matrices(
                each.weight.view(self.config.count, -1, each.in_size), None, scales=each.scales
            )
            for each in (self.gate_up, self.down)
        )
        return gate_up, down

    @property
    def max_few_tokens(self) -> int:
        """Return the maximum number; see ``KernelExperts.max_few_tokens``."""
        usable = all(each.scales.are_usable(each.in_size) for each in (self.gate_up, self.down))
        return MAX_TOKENS if usable else 0

    def compute_grouped(self, x: Tensor, weights: Tensor, lists: ExpertLists) -> Tensor:
        """Compute tokens grouped by expert; see ``KernelExperts.compute_grouped``."""
        gate_up, down = self.matrices_of_kernels()
        inner = gated_fp8_product(x, lists, self.config.per_token, gate_up, self.gate)
        return weighted_fp8_product(inner, weights, lists, down)


class TritonInt4Experts(KernelExperts, QuantizedExperts):
    """Experts in 4-bit integers, which are dequantized to memory, all of a layer's at once."""

    gate_up: TritonInt4Weight
    down: TritonInt4Weight

    def matrices_of_kernels(self) -> tuple[Matrices, Matrices]:
        """Return the matrices; see ``KernelExperts.matrices_of_kernels``."""
        gate_up, down = (
            int4_dequantize(each, like=each.scale).view(self.config.count, -1, each.in_size)
            for each in (self.gate_up, self.down)
        )
        return Matrices(gate_up, None), Matrices(down, None)


class TritonMxfp4Experts(Mxfp4Experts):
    """Experts in MXFP4, which the kernels unpack in registers."""

    gate_up: FragmentMatrices
    down: FragmentMatrices
    counter: Tensor
    """``[1]`` int32: 0, between the kernels that count with it; see ``choose``."""

    def new_matrices(self, out_size: int, in_size: int, *, interleaved: bool) -> FragmentMatrices:
        """Return the matrices of all experts, without numbers."""
        return FragmentMatrices(self.config.count, out_size, in_size, interleaved=interleaved)

    def after_loading(self) -> None:
        """Bring the matrices into the order in which the kernels read them."""
        self.gate_up.reorder()
        self.down.reorder()
        self.counter = torch.zeros(1, dtype=torch.int32, device=self.gate_up.packed.device)

    def forward(self, x: Operand, router: Linear) -> PartialSums:
        """Compute each token by its experts; see ``Experts.forward``."""
        per_token, normalized = self.config.per_token, self.config.normalized
        if isinstance(x, Normed):
            return self._pair_by_pair(
                *add_norm_and_choose(
                    x.residual, x.x, x.total, (x.weight, x.eps), (router.weight, router.bias),
                    per_token, self.counter, normalized=normalized,
                )
            )  # fmt: skip
        x = computed(x)
        logits = router.forward(x)
        if len(x) * per_token <= MAX_PAIRS:
            return self._pair_by_pair(x, *route(logits, per_token, normalized=normalized))
        _, weights, lists = route_and_list(logits, per_token, normalized=normalized)
        gate_up, down = self._fragments()
        inner = gated_fragment_product(x, lists, per_token, gate_up, self.gate)
        return PartialSums(weighted_fragment_product(inner, weights, lists, down), x.dtype)

    def _pair_by_pair(self, x: Tensor, experts: Tensor, weights: Tensor) -> PartialSums:
        gate_up, down = self._fragments()
        inner = gated_fragments_of_pairs(x, experts, gate_up, self.gate)
        return PartialSums(weighted_fragments_of_pairs(inner, experts, weights, down), x.dtype)

    def _fragments(self) -> tuple[Fragments, Fragments]:
        return self.gate_up.fragments(self.gate_up_bias), self.down.fragments(self.down_bias)


TRITON_LAYOUTS = Layouts(
    fp8=TritonFp8Weight,
    int4=TritonInt4Weight,
    mxfp4=TritonMxfp4Experts,
    fp8_experts=TritonFp8Experts,
    int4_experts=TritonInt4Experts,
)
