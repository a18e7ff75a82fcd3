"""Compiling all kernels of a step at once.

A kernel takes the compiler a second or several, and a step has twenty different ones. Launched in
turn, each would be compiled while all the others wait. Here launches are only noted first, and then
all kernels are compiled in parallel.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import torch
from triton import JITFunction
from triton.runtime._async_compile import AsyncCompileMode


def compile_in_parallel(steps: Iterable[Callable[[], None]]) -> None:
    """Compile the Triton kernels that the steps would launch, and launch none of them.

    PyTorch's own kernels run, on whatever is in memory. The compiler releases the GIL most of the
    time, so threads suffice.
    """
    # Triton's mode is a context variable, which an error would leave set. The copy is thrown away.
    copy_context().run(_compile, steps)


@torch.inference_mode()
def _compile(steps: Iterable[Callable[[], None]]) -> None:
    with ThreadPoolExecutor() as pool, AsyncCompileMode(pool), _launches_only_compile():
        for step in steps:
            step()


@contextmanager
def _launches_only_compile() -> Iterator[None]:
    """Let Triton compile kernels where they are launched, but not launch them."""
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:  # noqa: ARG001
        return run(self, *args, grid=grid, warmup=True, **options)

    JITFunction.run = compile_only
    try:
        yield
    finally:
        JITFunction.run = run
