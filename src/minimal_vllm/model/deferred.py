"""Tensors that are not computed yet.

On a GPU a small operation costs a launch and a pass over memory, unless the kernel that reads its
result computes it on the way. So a module may hand on a *deferred* tensor: the operands of its
computation, in a class that says how to finish it. A module that knows the class takes the
operands into its own kernel; every other module calls ``computed`` and gets the tensor.

The CPU's modules defer nothing. ``triton_modules`` has the classes of the GPU's.
"""

from typing import Protocol

from torch import Tensor


class Deferred(Protocol):
    """A tensor in the form of what it will be computed from."""

    def compute(self) -> Tensor:
        """Return the tensor."""
        ...


Operand = Tensor | Deferred
"""A tensor that may not be computed yet."""


def computed(x: Operand) -> Tensor:
    """Return ``x`` as a tensor, computing it if it is deferred."""
    return x if isinstance(x, Tensor) else x.compute()
