"""Experts in MXFP4: 4-bit floating-point numbers, 32 of which share a power of 2.

An e2m1 number has a sign, 2 bits of exponent and 1 of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4 or 6. A
byte e8m0 is the power of 2 that the 32 numbers of a group are multiplied by, plus 127::

    packed [E, out, in / 2]    a byte has columns 2 i (low bits) and 2 i + 1
    scale  [E, out, in / 32]   one for each group of columns

Source: OCP Microscaling Formats (MX) Specification 1.0, 2023, sections 5.2 and 5.3; gpt-oss, 2025,
https://arxiv.org/abs/2508.10925, is published in it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.experts import Experts
from minimal_vllm.model.linear import parameter
from minimal_vllm.model.quantization_config import MXFP4_GROUP

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Numbers that 4 bits stand for."""
PAIRS = torch.tensor([[E2M1[byte & 15], E2M1[byte >> 4]] for byte in range(256)])
"""The two numbers of each byte, ``[256, 2]``."""
BIAS = 127
"""Exponent of a scale that stands for 1."""


_PAIR = {torch.float32: torch.int64, torch.bfloat16: torch.int32}


class Mxfp4Matrices(nn.Module):
    """One matrix ``[out, in]`` per expert, in MXFP4.

    Args:
        count: number of experts.
        out_size: length of an output vector.
        in_size: length of an input vector.

    Raises:
        ValueError: the rows can't be cut into groups.
    """

    def __init__(self, count: int, out_size: int, in_size: int) -> None:
        super().__init__()
        if in_size % MXFP4_GROUP:
            raise ValueError(
                f"config.json: quantization_config: the experts' matrices have {in_size} columns, "
                f"which must be a multiple of {MXFP4_GROUP}, the group size of MXFP4"
            )
        self.in_size = in_size
        self.packed = parameter(count, out_size, in_size // 2, dtype=torch.uint8)
        self.scale = parameter(count, out_size, in_size // MXFP4_GROUP, dtype=torch.uint8)

    def dequantized(self, index: int, dtype: torch.dtype) -> Tensor:
        """Return the matrix of an expert, ``[out, in]``, computed exactly and then rounded."""
        exact = dtype if dtype == torch.bfloat16 else torch.float32
        # A pair is looked up as one number of twice the size, by all bytes at once.
        pairs = PAIRS.to(self.packed.device, exact).view(_PAIR[exact]).flatten()
        numbers = pairs.index_select(0, self.packed[index].flatten().int()).view(exact)
        exponents = self.scale[index].int() - BIAS
        factors = torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents).to(exact)
        groups = numbers.view(*factors.shape, MXFP4_GROUP)
        return groups.mul_(factors[:, :, None]).flatten(1).to(dtype)

    def init_random(self, generator: torch.Generator, std: float) -> None:
        """Fill the matrices with random numbers of about that standard deviation, or less."""
        self.packed.random_(generator=generator)
        exponent = int(torch.tensor(std / 3).log2().floor())  # 3: that of all 4-bit numbers
        self.scale.fill_(BIAS + exponent)

    @property
    def blocks(self) -> Tensor:
        """The packed numbers as a checkpoint has them: ``[E, out, groups, 16]``."""
        return self.packed.view(*self.scale.shape, MXFP4_GROUP // 2)


class Mxfp4Experts(Experts):
    """Experts whose matrices are kept in MXFP4. This class dequantizes each that has a token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        shapes = self.config.matrices(config.hidden_size)
        self.gate_up = self.new_matrices(*shapes["gate_up_proj"], interleaved=True)
        self.down = self.new_matrices(*shapes["down_proj"], interleaved=False)

    def new_matrices(self, out_size: int, in_size: int, *, interleaved: bool) -> Mxfp4Matrices:  # noqa: ARG002
        """Return the matrices of all experts, without numbers.

        Args:
            out_size: length of an output vector.
            in_size: length of an input vector.
            interleaved: whether rows of gate and up alternate.
        """
        return Mxfp4Matrices(self.config.count, out_size, in_size)

    def matrices(self, index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return an expert's matrices; see ``Experts.matrices``."""
        return self.gate_up.dequantized(index, dtype), self.down.dequantized(index, dtype)

    def stored_matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and destinations; see ``Experts.stored_matrices``."""
        for name, each in {"gate_up_proj": self.gate_up, "down_proj": self.down}.items():
            yield f"experts.{name}_blocks", each.blocks
            yield f"experts.{name}_scales", each.scale
