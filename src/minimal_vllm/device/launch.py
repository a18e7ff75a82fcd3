"""How our kernels follow one another on the GPU.

A kernel normally starts when the one before it has ended and its results are in memory; between the
two the GPU idles for about a microsecond, which is much when a kernel takes three. With
*programmatic dependent launch* (CUDA programming guide, section of that name; Hopper and later) the
next kernel starts early, loads what nobody changes, such as weights, and waits only then.

So every kernel that is launched like this calls ``wait_for_previous`` before it touches anything
that another kernel writes or reads, and does so in all its programs, also in those that have
nothing to do: a kernel's end must mean that all kernels before it have ended.

What a step's plan says may be read without waiting, too. Between the kernels that make it and the
layers stands the embedding, which is PyTorch's and launched as ever: it starts when all before it
have ended. And nobody changes a plan before the layers that read it have ended.
"""

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_HOPPER = (9, 0)


@triton.jit
def wait_for_previous(EARLY: tl.constexpr):  # noqa: ANN201, N803 - Triton's language
    """Let the next kernel start, and wait for the end of the one before."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()


def launch_options(tensor: Tensor) -> dict[str, Any]:
    """Whether a kernel on this tensor starts early."""
    early = tensor.is_cuda and is_hopper_or_later(tensor.device)
    # Where it can't, Triton isn't asked: its interpreter doesn't know the option.
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}


@lru_cache
def is_hopper_or_later(device: torch.device) -> bool:
    """Whether a CUDA device has what came with compute capability 9.0."""
    return torch.cuda.get_device_capability(device) >= _HOPPER
