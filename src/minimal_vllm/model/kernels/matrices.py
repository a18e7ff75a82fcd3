"""Matrices of experts in the model's dtype, as kernels read them.

Source of the products over experts: Gale et al. 2022, *MegaBlocks*,
https://arxiv.org/abs/2211.15841.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Matrices:
    """One matrix per expert, ``[out, in]``."""

    numbers: Tensor
    """``[E, out, in]``, contiguous."""
    bias: Tensor | None
    """``[E, out]``, contiguous, or None."""
    takes_turns: bool = False
    """Whether rows of gate and up take turns, if these are their matrices. False: gate, then up."""

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
