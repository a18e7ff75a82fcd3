"""Tensors that are not computed yet.

On a GPU, a small operation costs a kernel launch and a pass over memory, unless the kernel that
reads its result computes it on the fly. A module may therefore return a *deferred* tensor: an
object that holds the operands and can finish the computation. A module that knows the object's
class passes the operands to its own kernel; every other module calls ``computed`` to get the
tensor.

The CPU's modules defer nothing. The GPU's deferred tensors are defined in ``triton_modules``.
"""

from typing import Protocol

from torch import Tensor


class Deferred(Protocol):
    """A tensor represented by the operands that it will be computed from."""

    def compute(self) -> Tensor:
        """Compute and return the tensor."""
        ...


Operand = Tensor | Deferred
"""A tensor, computed or deferred."""


def computed(x: Operand) -> Tensor:
    """Return ``x`` as a tensor, computing it if it is deferred."""
    return x if isinstance(x, Tensor) else x.compute()
