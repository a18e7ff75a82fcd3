"""Compiling all kernels of a step at once.

A kernel takes the compiler a second or several, and a step has twenty different ones. At a kernel's
first launch, Triton also lets a C compiler make the function that launches it. Launched in turn,
each kernel would be made while all the others wait. Here launches are only noted first, and then
all kernels are made in parallel: by threads, or at a server's first start by other processes (see
``compilers``).
"""

import copyreg
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from importlib import import_module
from inspect import getclosurevars
from threading import Thread
from typing import Any

import torch
import triton
from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime._async_compile import AsyncCompileMode, FutureKernel

from minimal_vllm.runner.compilers import Compilers, running_compilers


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

    PyTorch's own kernels run, on whatever is in memory.
    """
    # Triton's mode is a context variable, which an error would leave set. The copy is thrown away.
    copy_context().run(_compile, steps)


@torch.inference_mode()
def _compile(steps: Iterable[Callable[[], None]]) -> None:
    gpu = torch.cuda.current_device()  # each thread has one of its own
    with (
        ThreadPoolExecutor(initializer=torch.cuda.set_device, initargs=(gpu,)) as pool,
        _UntilLaunch(pool, running_compilers()),
        _launches_only_compile(),
    ):
        for step in steps:
            step()


class _UntilLaunch(AsyncCompileMode):  # type: ignore[misc]  # Triton has no types
    """Triton's mode in which an executor compiles kernels; here, until only the launch is left.

    Args:
        executor: threads.
        compilers: processes that compile for these threads. None: the threads do it.
    """

    def __init__(self, executor: Executor, compilers: Compilers | None) -> None:
        super().__init__(executor)
        self._compilers = compilers

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
            source = KernelSource.of(compile_fn)
            if self._compilers and source:
                self._compilers.compile(source)
            kernel = compile_fn()  # found in the cache, if another process has compiled it
            kernel.run  # noqa: B018 - the property makes the function that launches the kernel
            return kernel

        kernel = super().submit(key, compile_and_load, finalize_fn, *others)
        finalize_fn(kernel)  # until it is compiled; Triton would look for it again at each launch
        return kernel


@dataclass(frozen=True)
class KernelSource:
    """A kernel as Triton compiles it, which can be sent to another process; see ``Source``."""

    source: ASTSource
    """The function, and types and constants of its arguments."""
    target: GPUTarget
    """The kind of GPU."""
    options: dict[str, Any]
    """Triton's options, like the number of warps."""

    @classmethod
    def of(cls, compile_fn: Callable[[], CompiledKernel]) -> "KernelSource | None":
        """Return what a function of Triton's would compile; None if this Triton hides it."""
        found = getclosurevars(compile_fn).nonlocals
        if not {"src", "target", "options"} <= found.keys():
            return None
        return cls(found["src"], found["target"], vars(found["options"]))

    def compile(self) -> None:
        """Compile the kernel into Triton's cache."""
        triton.compile(self.source, self.target, self.options)


def _by_name(function: JITFunction) -> tuple[Callable[..., JITFunction], tuple[str, str, str]]:
    """Return how another process finds the same function, for pickle."""
    return _find, (function.__module__, function.__name__, function.cache_key)


def _find(module: str, name: str, key: str) -> JITFunction:
    """Return a function of a module, with the key that it has in another process.

    The key of Triton's cache would depend on which functions a process has looked at before.
    """
    function: JITFunction = getattr(import_module(module), name)
    function.hash = key
    return function


copyreg.pickle(JITFunction, _by_name)


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
