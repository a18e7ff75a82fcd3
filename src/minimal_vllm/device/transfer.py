"""Transfers between the CPU and a GPU during which neither waits for the other."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def send(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return a contiguous copy of the array on the device.

    The copy to a GPU starts from pinned memory and is queued, so the CPU doesn't wait for it;
    PyTorch keeps the memory until then. Memory that is not pinned would have to be copied before
    this function returns. The copy is contiguous because kernels get no strides.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def send_into(array: npt.NDArray[Any], memory: Tensor) -> None:
    """Overwrite memory of the device with an array of the same size; see ``send``."""
    tensor = torch.from_numpy(array)
    memory.copy_(tensor.pin_memory() if memory.is_cuda else tensor, non_blocking=True)


class Fetch:
    """Copy of a tensor's values to the CPU, in progress."""

    def __init__(self, tensor: Tensor) -> None:
        self._values = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        self._values.copy_(tensor, non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> list[Any]:
        """Block until the copy has finished, and return the values."""
        values: list[Any] = self.array().tolist()
        return values

    def array(self) -> npt.NDArray[Any]:
        """Block until the copy has finished, and return the values as an array."""
        if self._arrived:
            self._arrived.synchronize()
        return self._values.numpy()
