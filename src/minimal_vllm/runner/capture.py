"""Recording GPU work as CUDA graphs.

In a small batch, a kernel runs for a few microseconds, about as long as the CPU takes to launch it.
A graph records the launches of hundreds of kernels with all their arguments, and replays them with
a single command. The recording fixes addresses and grid sizes, so inputs and outputs must stay at
the same addresses.

Source: CUDA Programming Guide, https://docs.nvidia.com/cuda/cuda-programming-guide/, "CUDA Graphs".
"""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import torch
from tqdm import tqdm

T = TypeVar("T")


class Graph(Protocol):
    """Recorded GPU work."""

    def replay(self) -> None:
        """Queue the recorded work on the GPU again."""
        ...


class GraphCapture:
    """Recorder of CUDA graphs. Its graphs run one at a time, so all of them share their memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def record(self, compute: Callable[[], None]) -> Graph:
        """Record the kernels that ``compute`` launches, without running them.

        They must be compiled, and the libraries that it calls must have computed the same before,
        because they can't load kernels during a recording. Record the work that needs the most
        memory first, so that all other graphs fit into its memory.
        """
        graph = torch.cuda.CUDAGraph()
        # Like torch.cuda.graph, but without emptying caches, which takes longer than all the rest.
        torch.cuda.synchronize()
        # Each thread has a cuBLAS handle of its own, which can't be made during a recording.
        torch.cuda.current_blas_handle()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool)
            try:
                compute()
            finally:  # an error must not leave the capture open
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph


def with_bar(recordings: Iterable[T], total: int, title: str, *, progress: bool) -> Iterable[T]:
    """Return the recordings, to be iterated over with a progress bar.

    Args:
        recordings: items, one for each graph.
        total: number of graphs.
        title: text beside the bar.
        progress: whether to show the bar on standard error, if that is a terminal.
    """
    disable = None if progress else True  # None: unless standard error is a terminal
    return tqdm(recordings, desc=title, total=total, disable=disable)
