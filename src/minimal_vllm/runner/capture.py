"""Recording work of a GPU as CUDA graphs.

At small batches a kernel runs for a few microseconds, about as long as the CPU takes to launch it.
A graph records the launches of hundreds of kernels, with all their arguments, and repeats them at
one command. Addresses and grids are part of it, so inputs and outputs stay where they are.

Source: CUDA Programming Guide, https://docs.nvidia.com/cuda/cuda-programming-guide/, "CUDA Graphs".
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch


class Graph(Protocol):
    """Recorded work."""

    def replay(self) -> None:
        """Put the work into the GPU's queue once more."""
        ...


class GraphCapture:
    """Records work of the GPU. All graphs use the same memory, since they run one at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def record(self, compute: Callable[[], None]) -> Graph:
        """Run ``compute`` once, and record what it launches.

        The run before the recording compiles missing kernels, and lets libraries prepare. The work
        that needs most memory should be recorded first: all other graphs then fit into its memory.
        """
        compute()
        graph = torch.cuda.CUDAGraph()
        # As torch.cuda.graph does, but for emptying caches, which takes longer than all the rest.
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool)
            try:
                compute()
            finally:  # an error must not leave the capture open
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph


def compile_side_by_side(steps: Iterable[Callable[[], None]]) -> None:
    """Run each step in a thread of its own, so that missing kernels are compiled in parallel.

    The compiler lets other threads run most of the time; the GPU does one thing after another.
    """
    with ThreadPoolExecutor() as pool:
        for running in [pool.submit(torch.inference_mode()(step)) for step in steps]:
            running.result()
