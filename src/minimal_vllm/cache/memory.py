"""How much memory the KV cache may take."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

DEFAULT_UTILIZATION = {"cuda": 0.9, "cpu": 0.5}
"""RAM is shared with the rest of the machine: by default the engine takes at most half of it."""

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A device's memory, in bytes."""

    device_type: str
    total: int
    free: int
    """What nobody uses."""
    used_by_process: int

    def kv_budget(self, utilization: float, activations: int) -> int:
        """Bytes left for the KV cache; not positive if there are none.

        This process may use ``utilization`` of the total. What it uses already (the weights above
        all) and what its largest step will take (``activations``) count towards that. What other
        processes use can't be had, whatever the share.
        """
        allowed = int(utilization * self.total) - self.used_by_process
        return min(allowed, self.free) - activations


def measure_memory(device: torch.device, gpu_free_at_start: int = 0) -> DeviceMemory:
    """The memory of the GPU, or of this machine.

    Args:
        device: which.
        gpu_free_at_start: ``gpu_free()`` before anything was loaded. The driver doesn't say which
            process uses what; what went since then is taken to be this one's.
    """
    if device.type == "cpu":
        return _measure_ram()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(device.type, total, free, max(0, gpu_free_at_start - free))


@contextmanager
def told_plainly_if_out_of_memory() -> Iterator[None]:
    """Turns what PyTorch and NumPy raise when memory runs out into a ValueError of one sentence.

    Raises:
        ValueError: memory has run out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        cause = str(error).partition("\n")[0]
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_memory and "can't allocate memory" not in cause:  # PyTorch on a CPU has no type
            raise
        raise ValueError(
            f"there is not enough memory for the model and its KV cache ({cause}): lower "
            f"gpu_memory_utilization, or num_gpu_blocks_override if it was given"
        ) from error


def gpu_free(device: torch.device) -> int:
    """Bytes of the GPU's memory that nobody uses; 0 if it is no GPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _measure_ram() -> DeviceMemory:
    ram = psutil.virtual_memory()
    total = min([ram.total, *_container_limits()])
    used = psutil.Process().memory_info().rss
    return DeviceMemory("cpu", total, min(ram.available, total - used), used)


def _container_limits() -> list[int]:
    texts = [Path(path).read_text().strip() for path in CGROUP_LIMITS if Path(path).exists()]
    return [int(text) for text in texts if text.isdigit()]  # "max": none
