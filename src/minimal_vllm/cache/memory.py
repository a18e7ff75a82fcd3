"""Measuring the memory that is left for the KV cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

DEFAULT_UTILIZATION = {"cuda": 0.9, "cpu": 0.5}
"""Default share of a device's memory that the engine uses. RAM is shared with the rest of the
machine."""

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A device's memory, in bytes."""

    device_type: str
    total: int
    free: int
    """Memory that no process uses."""
    used_by_process: int

    def shared_by(self, count: int) -> "DeviceMemory":
        """Return a process's share, if ``count`` equal processes share the RAM of this machine.

        A GPU belongs to one process alone.
        """
        if self.device_type != "cpu":
            return self
        return replace(self, total=self.total // count, free=self.free // count)

    def kv_budget(self, utilization: float, activations: int) -> int:
        """Return the bytes left for the KV cache; zero or negative if none are left.

        This process may use the share ``utilization`` of the total. That includes the memory that
        it already uses (mostly weights) and ``activations``, the memory that its largest step will
        use. The budget never exceeds the free memory minus ``activations``.
        """
        allowed = int(utilization * self.total) - self.used_by_process
        return min(allowed, self.free) - activations


def measure_memory(device: "torch.device", gpu_free_at_start: int = 0) -> DeviceMemory:
    """Measure the memory of a GPU, or the RAM of this machine.

    Args:
        device: a GPU, or the CPU.
        gpu_free_at_start: ``gpu_free()`` before anything was loaded. The driver doesn't report
            memory per process; what was allocated since then is counted as this process's.
    """
    if device.type == "cpu":
        return _measure_ram()
    import torch

    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(device.type, total, free, max(0, gpu_free_at_start - free))


@contextmanager
def out_of_memory_as_value_error() -> Iterator[None]:
    """Convert out-of-memory errors of PyTorch and NumPy into a ValueError of one sentence.

    Raises:
        ValueError: memory ran out; the message says which options to lower.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        import torch

        cause = str(error).partition("\n")[0]
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        # On a CPU, PyTorch raises a RuntimeError, which only its message tells from others.
        if not is_memory and "can't allocate memory" not in cause:
            raise
        raise ValueError(
            f"there is not enough memory for the model and its KV cache ({cause}): lower "
            f"gpu_memory_utilization, or num_gpu_blocks_override if it was given"
        ) from error


def gpu_free(device: "torch.device") -> int:
    """Return the bytes of a GPU's memory that no process uses; 0 for the CPU."""
    if device.type == "cpu":
        return 0
    import torch

    return torch.cuda.mem_get_info(device)[0]


def _measure_ram() -> DeviceMemory:
    ram = psutil.virtual_memory()
    total = min([ram.total, *_container_limits()])
    used = psutil.Process().memory_info().rss
    return DeviceMemory("cpu", total, min(ram.available, total - used), used)


def _container_limits() -> list[int]:
    texts = [Path(path).read_text().strip() for path in CGROUP_LIMITS if Path(path).exists()]
    return [int(text) for text in texts if text.isdigit()]  # "max": no limit
