"""Compiling all kernels of a step at once.

A kernel takes the compiler a second or several, and a step has twenty different ones. At a kernel's
first launch, Triton also lets a C compiler make the function that launches it. Launched in turn,
each kernel would be made while all the others wait. Here launches are only noted first, and then
all kernels are made in parallel.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from threading import Thread
from typing import Any

import torch
import triton
from triton import JITFunction
from triton.compiler import CompiledKernel
from triton.runtime._async_compile import AsyncCompileMode, FutureKernel


def start_compiler() -> None:
    """Let a thread compile a kernel that does nothing, so that the next ones take less time.

    Before its first kernel, Triton reads all of its own files, 400 MB, to see whether the kernels
    in its cache are still right, and has a C compiler make functions that speak with the driver.
    """
    gpu = torch.cuda.current_device()  # each thread has one of its own

    def compile_nothing() -> None:
        torch.cuda.set_device(gpu)
        with suppress(Exception):  # the first kernel that is needed raises it again
            _nothing_kernel.warmup(grid=(1,)).run  # noqa: B018 - see _UntilLaunch

    Thread(target=compile_nothing, name="compiler", daemon=True).start()


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _nothing_kernel() -> None:
    pass


def compile_in_parallel(steps: Iterable[Callable[[], None]]) -> None:
    """Compile the Triton kernels that the steps would launch, and launch none of them.

    PyTorch's own kernels run, on whatever is in memory. The compilers release the GIL most of the
    time, so threads suffice.
    """
    # Triton's mode is a context variable, which an error would leave set. The copy is thrown away.
    copy_context().run(_compile, steps)


@torch.inference_mode()
def _compile(steps: Iterable[Callable[[], None]]) -> None:
    gpu = torch.cuda.current_device()  # each thread has one of its own
    with (
        ThreadPoolExecutor(initializer=torch.cuda.set_device, initargs=(gpu,)) as pool,
        _UntilLaunch(pool),
        _launches_only_compile(),
    ):
        for step in steps:
            step()


class _UntilLaunch(AsyncCompileMode):  # type: ignore[misc]  # Triton has no types
    """Triton's mode in which an executor compiles kernels; here, until only the launch is left."""

    def submit(
        self,
        key: str,
        compile_fn: Callable[[], CompiledKernel],
        finalize_fn: Callable[[CompiledKernel | FutureKernel], None],
        *others: Any,
    ) -> FutureKernel:
        """Let the executor compile a kernel.

        Args:
            key: identifies the kernel.
            compile_fn: compiles it.
            finalize_fn: keeps its argument as the kernel of all launches like this one.
            others: what later versions of Triton pass.
        """

        def compile_and_load() -> CompiledKernel:
            kernel = compile_fn()
            kernel.run  # noqa: B018 - the property makes the function that launches the kernel
            return kernel

        kernel = super().submit(key, compile_and_load, finalize_fn, *others)
        finalize_fn(kernel)  # until it is compiled; Triton would look for it again at each launch
        return kernel


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
