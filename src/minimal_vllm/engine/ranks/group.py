"""Sums over ranks that share a CPU, by a process group of PyTorch's.

A group is an object here. PyTorch's default group, which is global, is not touched, so several
engines in one process don't meet.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.ranks import side_by_side
from minimal_vllm.runner.failures import RankLostError

_Store: Any = dist.FileStore  # type: ignore[attr-defined]
_Group: Any = dist.ProcessGroupGloo
_SumOptions: Any = dist.AllreduceOptions
_GatherOptions: Any = dist.distributed_c10d.AllgatherOptions  # type: ignore[attr-defined]

TIME_TO_MEET = timedelta(minutes=2)
"""Maximum time in which all ranks, which have started, must connect."""
LOOPBACK = "127.0.0.1"
LONGEST_STEP = timedelta(minutes=30)
"""Maximum time for which a rank waits for another that is alive."""


class GlooRanks:
    """Ranks on the CPUs of one machine; see ``Ranks``. They talk over the loopback interface.

    Args:
        folder: an empty folder through which the ranks find each other.
        index: number of this rank.
        count: number of ranks.

    Raises:
        RankLostError: another rank has not appeared in time. All methods raise it, too, once
            another rank is gone.
    """

    def __init__(self, folder: Path, index: int, count: int) -> None:
        self.index = index
        self.count = count
        self._store = open_store(folder, count)
        options = _Group._Options()
        options._devices = [_Group.create_device(hostname=LOOPBACK)]
        options._timeout = TIME_TO_MEET
        with raising_losses():
            self._group = _Group(self._store, index, count, options)
        self._sum, self._gather = _SumOptions(), _GatherOptions()
        self._sum.timeout = self._gather.timeout = LONGEST_STEP

    def add(self, part: Operand) -> Tensor:
        """Return the sum of all ranks' tensors, which overwrites ``part``; see ``Ranks.add``."""
        total = computed(part).contiguous()
        with raising_losses():
            self._group.allreduce([total], self._sum).wait()
        return total

    def concatenate(self, part: Tensor, out: Tensor | None = None) -> Tensor:
        """Return all ranks' columns side by side; see ``Ranks.concatenate``."""
        parts = part.new_empty(self.count, *part.shape)
        with raising_losses():
            parts_of_all = [list(parts.unbind())]
            self._group.allgather(parts_of_all, [part.contiguous()], self._gather).wait()
        return side_by_side(parts, out)

    def least(self, number: int) -> int:
        """Return the smallest of all ranks' numbers."""
        parts = self.concatenate(torch.tensor([[number]]))
        return int(parts.min())

    def raise_if_lost(self) -> None:
        """Do nothing: the other methods wait for the other ranks, and raise by themselves."""

    def give_up(self) -> None:
        """Do nothing: an exchange with a process that has ended fails by itself."""


def open_store(folder: Path, count: int) -> Any:
    """Return the store through which the ranks find each other.

    Args:
        folder: an empty folder, the same for all.
        count: number of ranks.
    """
    return _Store(str(folder / "ranks"), count)


@contextmanager
def raising_losses() -> Iterator[None]:
    """Convert a group's errors, which mean that the connection to another rank has ended."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(f"the connection to another rank has ended: {error}") from error
