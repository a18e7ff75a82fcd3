"""Transfers between the CPU and a GPU in which neither waits for the other."""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

COPIES = 4
"""Maximum number of copies that a ``Sender`` has in flight without waiting."""


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


class Sender:
    """Overwrites a tensor on the device again and again, without waiting for the device.

    The pinned memory for the copies is allocated only once, since each allocation takes the CPU
    some time.

    Args:
        memory: tensor on the device.
    """

    def __init__(self, memory: Tensor) -> None:
        self._memory = memory
        self._next = 0
        self._copies = [
            torch.empty_like(memory, device="cpu", pin_memory=memory.is_cuda) for _ in range(COPIES)
        ]
        self._arrived: list[torch.cuda.Event] = []
        """Event for each copy, recorded after its last transfer; empty on a CPU."""
        if memory.is_cuda:
            self._arrived = [torch.cuda.Event() for _ in range(COPIES)]  # type: ignore[no-untyped-call]

    def send(self, array: npt.NDArray[Any]) -> None:
        """Queue the transfer of an array of the tensor's size. The array may change afterward."""
        index, self._next = self._next, (self._next + 1) % COPIES
        if self._arrived:
            # The transfer ended long ago, if only a step or two are in flight.
            self._arrived[index].synchronize()
        self._copies[index].numpy()[:] = array
        self._memory.copy_(self._copies[index], non_blocking=True)
        if self._arrived:
            self._arrived[index].record()


@lru_cache
def _fetching(device: torch.device) -> torch.cuda.Stream:
    """Return the stream in which values are copied from a GPU to the CPU."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Fetch:
    """Copy of a tensor's values to the CPU, in progress.

    Later work on a GPU does not wait for it, but only until the values have been copied to other
    memory of the GPU.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._source = tensor.clone()  # the tensor itself may be overwritten now
        self._arrived: torch.cuda.Event | None = None
        if not tensor.is_cuda:
            self._values = self._source
            return
        self._values = torch.empty_like(tensor, device="cpu", pin_memory=True)
        stream = _fetching(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            self._values.copy_(self._source, non_blocking=True)
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
