"""Which steps are recorded as CUDA graphs, and how: what happens at start-up.

A graph records the launches of hundreds of kernels, with all their arguments, to repeat them at one
command. Addresses and grids are part of it: so inputs and outputs stay where they are, and there is
a recording for each of some sizes of a step; a step is padded to the next one.

Source: CUDA Programming Guide, https://docs.nvidia.com/cuda/cuda-programming-guide/, "CUDA Graphs".
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch

LAUNCHES_TAKE = 9e12
"""Operations of a GPU (at 600 TFLOP/s) while the CPU launches a step's kernels (15 ms)."""
MOST_TOKENS = 4096
"""For more the library's kernel is better than ours, and recordings take memory."""
ALWAYS_RECORDED = 512
"""Tokens: whatever the model."""


class Recording(Protocol):
    """What was recorded."""

    def replay(self) -> None:
        """Put it into the GPU's queue once more."""
        ...


class Recorder:
    """Records work of the GPU. All recordings use the same memory: they run one at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def record(self, compute: Callable[[], None]) -> Recording:
        """Run it once, and record it; best begin with what needs most memory.

        The first run compiles what isn't yet, and lets libraries prepare.
        """
        compute()
        graph = torch.cuda.CUDAGraph()
        # As torch.cuda.graph does, but for emptying caches, which takes longer than all else.
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool)
            try:
                compute()
            finally:  # an error must not leave all that follows in the recording
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph


def compile_side_by_side(steps: Iterable[Callable[[], None]]) -> None:
    """Run steps in a thread each, so that the kernels that they are missing are compiled at once.

    Compilers let other threads run most of the time. The GPU does one thing after the other.
    """
    with ThreadPoolExecutor() as pool:
        for running in [pool.submit(torch.inference_mode()(step)) for step in steps]:
            running.result()


def batch_sizes(most: int) -> Iterator[int]:
    """For how many requests: dense where a step's time depends on it."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, most, 16)]
    yield from (size for size in sizes if size < most)
    yield most


def token_counts(most: int) -> Iterator[int]:
    """For how many tokens."""
    powers = (256, 512, 1024, 2048)
    dense = [power * quarters // 4 for power in powers for quarters in (5, 6, 7, 8)]
    yield from (size for size in [16, 32, 64, 128, 192, 256, *dense] if size < most)
    yield most


def next_size(sizes: Sequence[int], least: int) -> int:
    """What a step is padded to."""
    return sizes[bisect_left(sizes, least)]


def most_recorded_tokens(num_parameters: int, most: int) -> int:
    """Up to how many tokens: as long as the GPU would wait for launches.

    Args:
        num_parameters: of the model; each takes two operations per token.
        most: no step has more tokens.
    """
    worth = round(LAUNCHES_TAKE / (2 * num_parameters))
    return min(max(worth, ALWAYS_RECORDED), MOST_TOKENS, most)
