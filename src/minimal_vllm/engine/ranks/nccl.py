"""Sums over ranks that have a GPU each: large ones by NCCL, small ones by a kernel of our own."""

import atexit
import ctypes
import logging
import os
import weakref
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minimal_vllm.engine.ranks.group import LONGEST_STEP, open_store, raising_losses
from minimal_vllm.engine.ranks.pushed_sums import PushedSums, shared_memories
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.triton_modules import PartialSums
from minimal_vllm.runner.failures import RankLostError

_Group: Any = getattr(dist, "ProcessGroupNCCL", None)  # PyTorch for CPUs doesn't have it
_SumOptions: Any = dist.AllreduceOptions
_GatherOptions: Any = dist.distributed_c10d.AllgatherOptions  # type: ignore[attr-defined]


logger = logging.getLogger(__name__)
_has_shared = False
"""Whether GPUs have exchanged memory with this process."""


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
        atexit.register(_keep, weakref.ref(self._group))
        self._small = self._pushed_sums(folder) if count > 1 else None

    def add(self, part: Operand) -> Tensor:
        """Return the sum of all ranks' tensors, which may overwrite ``part``; see ``Ranks.add``."""
        if self._small is not None:
            # A product whose inner sum was split is added up on the way.
            parts = part.parts if isinstance(part, PartialSums) else computed(part)[None]
            dtype = part.dtype if isinstance(part, PartialSums) else parts.dtype
            if self._small.fits(parts, dtype):
                return self._small.add(parts.contiguous(), dtype)
        total = computed(part).contiguous()
        self.add_large(total)
        return total

    def add_large(self, part: Tensor) -> None:
        """Add all ranks' tensors, in place, by NCCL."""
        with raising_losses():
            self._group.allreduce([part], self._sum)

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
            if self._small is not None:
                self._small.give_up()
            # NCCL's kernels end at once. But it then waits for the end of all CUDA graphs that have
            # one of them.
            Thread(target=self._group.abort, name="giving up", daemon=True).start()

    def _pushed_sums(self, folder: Path) -> PushedSums | None:
        """Return the way to add small tensors; None if the GPUs can't write each other's memory.

        PyTorch counts a process's exchanges of memory, and the counts of all ranks must agree. So
        only a process's first engine can make one with the new processes of its other ranks.
        """
        global _has_shared
        memories: list[Tensor] = []
        if not self.least(int(not _has_shared)):
            return None
        _has_shared = True
        try:
            memories, self._kept = shared_memories(folder, self._store, self.index, self.count)
        except RuntimeError as error:
            logger.warning("Small sums over GPUs are slow here, because they use NCCL: %s", error)
        if not self.least(int(bool(memories))):  # after which all memories are filled with zeros
            return None
        return PushedSums(memories, self.index)


def _keep(group: "weakref.ref[Any]") -> None:
    """Let a group that exists at the end of the process not be destroyed.

    NCCL would wait for the end of all CUDA graphs that have one of its kernels, which may exist
    longer than the group. The system takes back all that it holds.
    """
    if (alive := group()) is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(alive))
