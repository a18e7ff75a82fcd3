"""Quantized weights on a GPU, multiplied by our own kernels and the library's.

Each computes what its base class computes. Products of several tokens with FP8 weights also round
the tokens' numbers to FP8.
"""

from torch import Tensor
from torch.nn.functional import linear

from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.kernels.fp8 import (
    can_use_block_product,
    can_use_row_product,
    fp8_block_product,
    fp8_row_product,
)
from minimal_vllm.model.kernels.gate import act_and_mul
from minimal_vllm.model.kernels.int4 import int4_dequantize, int4_matvec, int4_product
from minimal_vllm.model.kernels.matrices import Matrices
from minimal_vllm.model.kernels.matvec import Scales, add_norm_matvec, can_use_matvec, matvec
from minimal_vllm.model.quantization.convert import Layouts
from minimal_vllm.model.quantization.fp8 import Fp8Weight
from minimal_vllm.model.quantization.int4 import Int4Weight
from minimal_vllm.model.quantization.mxfp4 import Mxfp4Experts
from minimal_vllm.model.supported import Activation
from minimal_vllm.model.triton_modules import KernelExperts, Normed

MANY_TOKENS = 256
"""Number of tokens from which on 4-bit weights are dequantized to memory before the product: each
tile of them would otherwise be dequantized once per 64 tokens."""


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
            product = fp8_row_product(x, self.weight, self.scales, bias)
        elif can_use_block_product(self.weight, self.scales):
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


class TritonMxfp4Experts(KernelExperts, Mxfp4Experts):
    """Experts in MXFP4, which the kernels unpack in registers."""

    def matrices_of_kernels(self) -> tuple[Matrices, Matrices]:
        """Return the matrices; see ``KernelExperts.matrices_of_kernels``."""
        packed, scale = self.gate_up.packed, self.gate_up.scale
        gate_up = Matrices(packed, scale, self.gate_up_bias, self.config.takes_turns)
        return gate_up, Matrices(self.down.packed, self.down.scale, self.down_bias)


TRITON_LAYOUTS = Layouts(fp8=TritonFp8Weight, int4=TritonInt4Weight, mxfp4=TritonMxfp4Experts)
