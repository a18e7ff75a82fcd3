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
from minimal_vllm.engine.ranks.pushed_norms import NormSizes, PushedNorms
from minimal_vllm.engine.ranks.pushed_sums import PushedSums, memory_bytes, shared_memories
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.kernels.pushed_norm import rows_of_rank
from minimal_vllm.model.kernels.pushed_sum import Farewell
from minimal_vllm.model.ranks import side_by_side
from minimal_vllm.model.triton_modules import DividedStream, PartialSums, PartOfSum
from minimal_vllm.runner.failures import RankLostError

_Group: Any = getattr(dist, "ProcessGroupNCCL", None)  # PyTorch for CPUs doesn't have it
_SumOptions: Any = dist.AllreduceOptions
_GatherOptions: Any = dist.distributed_c10d.AllgatherOptions  # type: ignore[attr-defined]


logger = logging.getLogger(__name__)
SECONDS_TO_END = 2.0
"""Maximum time that a process waits for the end of a group before it ends itself."""
_has_shared = False
"""Whether GPUs have exchanged memory with this process."""


class NcclRanks:
    """Ranks on the GPUs of one machine; see ``Ranks``. Each process sees only its own GPU.

    A method only queues the exchange, on the current stream, so it can be part of a CUDA graph. The
    GPU then waits for the others' parts. If another rank is gone, it would wait forever; so
    ``give_up`` must be called as soon as that is noticed.

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
        self._farewell = Farewell.on(torch.device("cuda"))
        options = _Group.Options()
        options._timeout = LONGEST_STEP
        self._sum, self._gather = _SumOptions(), _GatherOptions()
        self._sum.asyncOp = self._gather.asyncOp = False  # on the current stream
        with raising_losses():
            self._group = _Group(self._store, index, count, options)
            self.least(0)  # connects, which CUDA graphs can't record
        atexit.register(_keep, weakref.ref(self._group))
        self._end = weakref.finalize(self, _abort, self._group)
        self._end.atexit = False
        self._small: PushedSums | None = None
        self._norms: PushedNorms | None = None
        if count > 1:
            self._share_memory(folder)

    def add(self, part: Operand) -> Operand:
        """Return the sum of all ranks' tensors, which may overwrite ``part``; see ``Ranks.add``."""
        # A product whose inner sum was split is added up on the way.
        parts = part.parts if isinstance(part, PartialSums) else computed(part)[None]
        dtype = part.dtype if isinstance(part, PartialSums) else parts.dtype
        parts = parts.contiguous()
        # The next product adds and normalizes a single token by itself.
        is_several = len(parts[0]) > 1
        if is_several and self._norms is not None and self._norms.fits(parts, dtype):
            return PartOfSum(parts, dtype, self)
        return self.add_now(parts, dtype)

    def add_now(self, parts: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the sum of all ranks' parts; see ``RankSums.add_now``."""
        if self._small is not None and self._small.fits(parts, dtype):
            return self._small.add(parts, dtype)
        total = (parts[0] if len(parts) == 1 else parts.sum(dim=0)).to(dtype)
        self.add_large(total)
        return total

    def add_norm(
        self, part: PartOfSum, residual: Operand, weight: Tensor, eps: float
    ) -> tuple[Tensor, Operand]:
        """Add the sum to the residual stream and normalize it; see ``RankSums.add_norm``."""
        if self._norms is None:
            raise RuntimeError("a sum was deferred that can't be")
        is_divided = self._norms.divides(part.parts, part.dtype)
        if is_divided and isinstance(residual, DividedStream):
            stream = residual.stream
        else:
            stream = computed(residual)
        normed = self._norms.add(part.parts, stream, weight, eps)
        return normed, DividedStream(stream, self._gather_rows) if is_divided else stream

    def add_large(self, part: Tensor) -> None:
        """Add all ranks' tensors, in place, by NCCL."""
        with raising_losses():
            self._group.allreduce([part], self._sum)

    def concatenate(self, part: Tensor, out: Tensor | None = None) -> Tensor:
        """Return all ranks' columns side by side; see ``Ranks.concatenate``."""
        if out is not None and self._norms is not None and self._norms.fits_columns(part):
            return self._norms.concatenate(part.contiguous(), out)
        parts = part.new_empty(self.count, *part.shape)
        with raising_losses():
            self._group._allgather_base(parts, part.contiguous(), self._gather)
        return side_by_side(parts, out)

    def _gather_rows(self, stream: Tensor) -> Tensor:
        """Return a stream of which each rank has a share of the tokens."""
        tokens, size = stream.shape
        rows = rows_of_rank(tokens, self.count)
        own = stream.new_zeros(rows, size)
        share = stream[self.index * rows : (self.index + 1) * rows]
        own[: len(share)] = share
        whole = stream.new_empty(self.count * rows, size)
        with raising_losses():
            self._group._allgather_base(whole, own, self._gather)
        return whole[:tokens]

    def least(self, number: int) -> int:
        """Return the smallest of all ranks' numbers."""
        return int(self.concatenate(torch.tensor([[number]], device="cuda")).min())

    def raise_if_lost(self) -> None:
        """Raise a ``RankLostError`` if ``give_up`` was called."""
        if self._farewell.is_said:
            raise RankLostError("another rank has ended")

    def give_up(self) -> None:
        """End all exchanges, those in progress too; may be called by another thread, and again."""
        self._farewell.say()
        self._end()

    def _share_memory(self, folder: Path) -> None:
        """Prepare sums in kernels of our own, if the GPUs can write each other's memory.

        PyTorch counts a process's exchanges of memory, and the counts of all ranks must agree. So
        only a process's first engine can make one with the new processes of its other ranks.
        """
        global _has_shared
        memories: list[Tensor] = []
        if not self.least(int(not _has_shared)):
            return
        _has_shared = True
        sizes = NormSizes(self.count)
        for_sums, for_norms = memory_bytes(self.count), sum(sizes.parts)
        try:
            memories, self._kept = shared_memories(
                for_sums + for_norms, folder, self._store, self.index, self.count
            )
        except RuntimeError as error:
            logger.warning("Small sums over GPUs are slow here, because they use NCCL: %s", error)
        if not self.least(int(bool(memories))):  # after which all memories are filled with zeros
            return
        own = [each[:for_sums] for each in memories]
        self._small = PushedSums(own, self.index, self._farewell)
        others = [each[for_sums:] for each in memories]
        self._norms = PushedNorms(others, self.index, sizes, self._farewell)


def _abort(group: Any) -> None:
    """End a group and its exchanges, in progress or not, in another thread.

    NCCL's kernels end at once. But it then waits for the end of all CUDA graphs that have one of
    them. So would the group's destructor, which must not run before.
    """
    thread = Thread(target=group.abort, name="end of a group", daemon=True)
    thread.start()
    # A thread that still runs at the very end would abort the process.
    atexit.register(thread.join, SECONDS_TO_END)


def _keep(group: "weakref.ref[Any]") -> None:
    """Let a group that exists at the end of the process not be destroyed.

    NCCL would wait for the end of all CUDA graphs that have one of its kernels, which may exist
    longer than the group. The system takes back all that it holds.
    """
    if (alive := group()) is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(alive))
