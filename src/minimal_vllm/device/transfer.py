"""Moving numbers between the CPU and a GPU without waiting for either."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def send(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device, contiguous: kernels get no strides.

    From pinned memory a GPU fetches it when its turn comes, while the CPU goes on; the pages are
    kept until it has. Other memory would have to be copied before this returns.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Fetch:
    """The values of a tensor on their way to the CPU."""

    def __init__(self, tensor: Tensor) -> None:
        self._values = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        self._values.copy_(tensor, non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> list[Any]:
        """They, once they are there."""
        if self._arrived:
            self._arrived.synchronize()
        values: list[Any] = self._values.tolist()
        return values
