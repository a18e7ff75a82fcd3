"""Matrices of experts in the model's dtype or in FP8, as kernels read them.

Source of the products over experts: Gale et al. 2022, *MegaBlocks*,
https://arxiv.org/abs/2211.15841.
"""

from dataclasses import dataclass

from torch import Tensor

from minimal_vllm.model.kernels.matvec import Scales, scale_options


@dataclass(frozen=True, slots=True)
class Matrices:
    """One matrix per expert, ``[out, in]``."""

    numbers: Tensor
    """``[E, out, in]``, contiguous."""
    bias: Tensor | None
    """``[E, out]``, contiguous, or None."""
    interleaved: bool = False
    """Whether rows of gate and up alternate, if these are their matrices. False: gate, then up."""
    scales: Scales | None = None
    """Scales of all experts' rows, one expert after the other, if the matrices are in FP8."""

    @property
    def out_size(self) -> int:
        """Length of an output vector."""
        return self.numbers.shape[1]

    def options(self) -> dict[str, object]:
        """Return the arguments of a kernel that reads the matrices."""
        return {
            "matrices": self.numbers,
            "bias": self.numbers if self.bias is None else self.bias,
            "BIAS": self.bias is not None,
        }

    def scale_options(self) -> dict[str, object]:
        """Return the arguments of a kernel that reads the scales."""
        return scale_options(self.scales, self.numbers, self.numbers.shape[2])
