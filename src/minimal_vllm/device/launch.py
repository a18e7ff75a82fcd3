"""How our kernels follow one another on the GPU.

A kernel normally starts when the one before it has ended and its results are in memory. Between the
two the GPU idles for about a microsecond, which is much for a kernel that takes three. With
*programmatic dependent launch* (CUDA programming guide, section of that name; Hopper and later) the
next kernel starts early, loads what never changes, such as weights, and only then waits.

So every kernel that is launched like this calls ``wait_for_previous`` before it touches memory that
another kernel writes or reads. All of its programs call it, even those that have nothing to do: the
end of a kernel must mean that all kernels before it have ended.

A kernel may also read the step's plan without waiting. Between the kernels that make the plan and
the layers stands the embedding, which is PyTorch's and launched the normal way: it starts when all
kernels before it have ended. And a plan is not changed before the layers that read it have ended.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from minimal_vllm.device.properties import is_hopper_or_later


@triton.jit
def wait_for_previous(EARLY: tl.constexpr):  # noqa: ANN201, N803 - Triton's language
    """Let the next kernel start, and wait for the end of the one before."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()


def launch_options(tensor: Tensor) -> dict[str, Any]:
    """Return the options that let a kernel on this tensor start early, if its GPU can do that."""
    early = is_hopper_or_later(tensor.device)
    # Without it, the option is left out: Triton's interpreter doesn't know it.
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}
