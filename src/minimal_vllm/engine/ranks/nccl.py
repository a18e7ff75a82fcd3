"""Sums over ranks that have a GPU each, by NCCL, in the order of the GPU's work."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minimal_vllm.engine.ranks.group import LONGEST_STEP, open_store, raising_losses
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.runner.failures import RankLostError

_Group: Any = getattr(dist, "ProcessGroupNCCL", None)  # PyTorch for CPUs doesn't have it
_SumOptions: Any = dist.AllreduceOptions
_GatherOptions: Any = dist.distributed_c10d.AllgatherOptions  # type: ignore[attr-defined]


class NcclRanks:
    """Ranks on the GPUs of one machine; see ``Ranks``. Each process sees only its own GPU.

    A method only queues the exchange, on the current stream, so it can be part of a CUDA graph. The
    GPU then waits for the others' parts. If another rank is gone, it would wait forever; whoever
    notices that first must call ``give_up``.

    Args:
        folder: an empty folder through which the ranks find each other.
        index: number of this rank.
        count: number of ranks.

    Raises:
        RankLostError: another rank has not appeared in time.
    """

    def __init__(self, folder: Path, index: int, count: int) -> None:
        # Sums in the switch (NVLink multicast) need memory that virtual machines often lack.
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
        self.index = index
        self.count = count
        self._store = open_store(folder, count)
        self._is_lost = False
        options = _Group.Options()
        options._timeout = LONGEST_STEP
        self._sum, self._gather = _SumOptions(), _GatherOptions()
        self._sum.asyncOp = self._gather.asyncOp = False  # on the current stream
        with raising_losses():
            self._group = _Group(self._store, index, count, options)
            self.least(0)  # connects, which CUDA graphs can't record

    def add(self, part: Operand) -> Tensor:
        """Return the sum of all ranks' tensors, which overwrites ``part``; see ``Ranks.add``."""
        total = computed(part).contiguous()
        with raising_losses():
            self._group.allreduce([total], self._sum)
        return total

    def concatenate(self, part: Tensor) -> Tensor:
        """Return all ranks' columns side by side; see ``Ranks.concatenate``."""
        parts = part.new_empty(self.count, *part.shape)
        with raising_losses():
            self._group._allgather_base(parts, part.contiguous(), self._gather)
        return parts.transpose(0, 1).flatten(1)

    def least(self, number: int) -> int:
        """Return the smallest of all ranks' numbers."""
        return int(self.concatenate(torch.tensor([[number]], device="cuda")).min())

    def raise_if_lost(self) -> None:
        """Raise a ``RankLostError`` if ``give_up`` was called."""
        if self._is_lost:
            raise RankLostError("another rank has ended")

    def give_up(self) -> None:
        """End all exchanges, those in progress too; may be called by another thread, and again."""
        if not self._is_lost:
            self._is_lost = True
            self._group.abort()
