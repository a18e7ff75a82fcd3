"""Functions that TorchScript runs, because Python's own calls take longer than a short product.

A call of one of PyTorch's operations takes a microsecond or two from Python, and one of
``torch.ops.quantized`` takes seven, most of which checks the arguments against the operation's
schema. A step of few tokens makes hundreds of them. TorchScript checks a function when it compiles
it, and then runs all of its operations for the price of two microseconds.

PyTorch has deprecated TorchScript. Its successors, though, need a C++ compiler where they run.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    PackedMatrix = torch.ScriptObject
else:  # the type's name in TorchScript
    PackedMatrix = torch.classes.quantized.LinearPackedParamsBase

Product = Callable[[Tensor, PackedMatrix], Tensor]
"""Function that multiplies vectors, ``[T, in]``, by a matrix that FBGEMM has packed."""


@cache
def scripted(function: Product) -> Product:
    """Return a function that computes the same as ``function`` with less overhead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled: Product = torch.jit.script(function)
    return compiled
