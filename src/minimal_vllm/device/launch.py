"""Launching a kernel early, while the previous one still runs.

Normally a kernel starts after the previous one has ended and its results are in memory. In between,
the GPU idles for about a microsecond, which is a lot for kernels that take three. With
*programmatic dependent launch* (see the CUDA programming guide; Hopper and later), the next kernel
starts early, loads data that never changes, such as weights, and only then waits.

Every kernel that is launched like this calls ``wait_for_previous`` before it accesses memory that
another kernel writes or reads. Programs that have nothing to do call it, too, because the end of a
kernel must imply that all earlier kernels have ended. It is enough if one of them does: the others
then make room for the next kernel (``wait_in_first``).

A kernel may read the step's attention plan without waiting. Between the kernels that make the plan
and the layers that read it runs the embedding, a PyTorch kernel with a normal launch: it starts
after all earlier kernels have ended. The plan is not changed until these layers have ended.

A kernel that calls ``wait_before_next`` instead lets the next one start later. But the next one may
then also read what the kernels before it wrote, and waits only before it reads its results.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from minimal_vllm.device.properties import is_hopper_or_later


@triton.jit
def wait_for_previous(EARLY: tl.constexpr):  # noqa: ANN201, N803 - Triton's language
    """Let the next kernel start, and wait for the previous one to end."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def wait_in_first(program, EARLY: tl.constexpr):  # noqa: ANN001, ANN201, N803 - Triton's language
    """Wait for the previous kernel to end if ``program`` is 0; others have nothing to wait for."""
    if program == 0:
        wait_for_previous(EARLY)


@triton.jit
def wait_before_next(EARLY: tl.constexpr):  # noqa: ANN201, N803 - Triton's language
    """Wait for the previous kernel to end, and only then let the next one start.

    The next kernel may read without waiting what the previous one has written.
    """
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


def launch_options(tensor: Tensor) -> dict[str, Any]:
    """Return the options that let a kernel on this tensor start early, if its GPU supports it."""
    early = is_hopper_or_later(tensor.device)
    # launch_pdl must be absent elsewhere, because Triton's interpreter doesn't know it.
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}
