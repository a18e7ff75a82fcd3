"""Timing of single GPU kernels, and the floors that they are compared with."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from benchmarks.gpu_workloads import COPY, PRODUCT, Gpu, this_gpu
from minimal_vllm_lab.sim.hardware import GPUS

L2_CACHE = 60e6
"""Size of an H200's L2 cache in bytes."""
CALLS, REPLAYS = 100, 20
"""Calls per graph, and replays. The calls are numerous enough that the graph's launch does not
matter."""


@dataclass(frozen=True)
class Shape:
    """Shape of a layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    inner: int

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        return 2 * self.num_kv_heads * self.head_dim * 2


@dataclass(frozen=True)
class Timing:
    """Timing of one kernel. Times are in microseconds."""

    kernel: str
    work: str
    microseconds: float
    floor: float


@dataclass(frozen=True)
class Bench:
    """Device, shape and size of the measurements."""

    shape: Shape
    device: torch.device
    scale: float
    """Factor for the sizes: 1, or less in a test."""

    def numbers(self, *size: int) -> Tensor:
        """Return random numbers in bfloat16."""
        return torch.randn(size, device=self.device).to(torch.bfloat16)

    def copies(self, num_bytes: float) -> range:
        """Return a range over enough copies of ``num_bytes`` to exceed the L2 cache."""
        return range(max(1, round(self.scale * 3 * L2_CACHE / num_bytes)) if num_bytes else 1)

    def scaled(self, number: int) -> int:
        """Return a number of tokens or requests, reduced in a test."""
        return max(2, round(self.scale * number))

    def microseconds(self, call: Callable[[], object]) -> float:
        """Return the duration of one call in microseconds, without its launch."""
        if self.device.type == "cpu":
            call()
            return 1.0
        torch.cuda.synchronize()  # the plans must be on the GPU before capture begins
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(CALLS):
                call()
        times = []
        for _ in range(REPLAYS):
            begun = time.perf_counter()
            graph.replay()
            torch.cuda.synchronize()
            times.append((time.perf_counter() - begun) * 1e6 / CALLS)
        return median(times)


def floor_gpu() -> Gpu:
    """Return the GPU whose rates floors assume: this one if its rates were measured, or an H200."""
    return this_gpu() or "h200"


def floor_of(num_bytes: float, flops: float) -> float:
    """Return the minimum time for some bytes and FLOPs in microseconds, on the ``floor_gpu``."""
    name = floor_gpu()
    gpu = GPUS[name]
    bytes_per_second = gpu.bandwidth * 1e12 * COPY[name]
    return max(num_bytes / bytes_per_second, flops / (gpu.tflops * 1e12 * PRODUCT)) * 1e6
