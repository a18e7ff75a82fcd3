"""Properties of a device on which the choice of a kernel depends."""

from functools import lru_cache

import torch

HOPPER = (9, 0)
"""Compute capability of the H100 and H200. Blackwell follows with (10, 0) and (12, 0)."""
SMS_OF_A_CPU = 132
"""Number of SMs assumed on a CPU, where Triton's interpreter runs the kernels: that of an H200, so
that the engine makes the same choices as there."""


@lru_cache
def num_sms(device: torch.device) -> int:
    """Return the number of a GPU's streaming multiprocessors; on a CPU, ``SMS_OF_A_CPU``."""
    if device.type != "cuda":
        return SMS_OF_A_CPU
    return torch.cuda.get_device_properties(device).multi_processor_count


def is_hopper(device: torch.device) -> bool:
    """Return whether a device is a GPU of compute capability 9.x."""
    return device.type == "cuda" and _capability(device)[0] == HOPPER[0]


def is_hopper_or_later(device: torch.device) -> bool:
    """Return whether a device is a GPU of compute capability 9.0 or higher."""
    return device.type == "cuda" and _capability(device) >= HOPPER


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
