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
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    PackedMatrix = torch.ScriptObject
else:  # the type's name in TorchScript
    PackedMatrix = torch.classes.quantized.LinearPackedParamsBase

Function = TypeVar("Function", bound=Callable[..., Any])
Module = TypeVar("Module", bound=nn.Module)


def _compile(function: Callable[..., Any] | nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(function)


_compile_once = cache(_compile)


def scripted(function: Function) -> Function:
    """Return a function that computes the same as ``function`` with less overhead.

    It is compiled on the first call, and shared by all callers.
    """
    compiled: Function = _compile_once(function)
    return compiled


def scripted_module(module: Module) -> Module:
    """Return a module that computes the same as ``module`` with less overhead.

    Its attributes are converted for TorchScript once, while arguments are converted in each call.
    """
    compiled: Module = _compile(module)
    return compiled
