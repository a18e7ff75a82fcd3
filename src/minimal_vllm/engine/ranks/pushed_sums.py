"""Sums of small tensors over a few GPUs, which write into each other's memory."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import (
    ProcessGroup,
    _register_process_group,
    _SymmetricMemory,
    _unregister_process_group,
)

from minimal_vllm.model.kernels.pushed_sum import (
    FLAGGED_PROGRAMS,
    TAGGED_PROGRAMS,
    Farewell,
    flagged_sum,
    tagged_sum,
)

MAX_TAGGED = 32768
"""Maximum number of numbers that are sent with a tag each, to all other ranks together."""
MAX_BYTES = 4 << 20
"""Maximum number of bytes that a rank sends for a sum; with more, NCCL is faster."""
ALIGNMENT = 256
"""Sizes of slots are multiples of this, so that threads can load 16 bytes at once."""


class PushedSums:
    """Sums of small tensors over the GPUs of one host.

    Each rank sends its tensor to all others. For two ranks that is the least possible; for large
    tensors and more ranks, NCCL sends less.

    Args:
        memories: memory of each rank, ``[memory_bytes(ranks)]`` uint8, filled with zeros. All ranks
            can write it.
        index: number of this rank.
        farewell: whether a rank is gone; see ``tagged_sum``.
    """

    def __init__(self, memories: list[Tensor], index: int, farewell: Farewell) -> None:
        self.index, self._farewell = index, farewell
        sizes = _sizes(len(memories))
        parts = [torch.split(each, list(sizes)) for each in memories]
        self._words = tuple(words.view(torch.int64) for words, _, _ in parts)
        self._flags = tuple(flags.view(torch.int32) for _, flags, _ in parts)
        self._slots = [slots for _, _, slots in parts]
        own = memories[index].new_zeros
        self._num_tagged = own(TAGGED_PROGRAMS, dtype=torch.int32)
        self._num_flagged = own(FLAGGED_PROGRAMS, dtype=torch.int32)
        self._max_tagged, self._max_bytes = _slot_sizes(len(memories))

    def fits(self, parts: Tensor, dtype: torch.dtype) -> bool:
        """Return whether the sum of parts, in a dtype, is small enough for ``add``."""
        return parts[0].numel() * dtype.itemsize <= self._max_bytes

    def add(self, parts: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the sum of all ranks' tensors.

        Args:
            parts: ``[parts, ...]``, contiguous: parts of the rank's tensor.
            dtype: dtype of the tensor, to which the sum of its parts is rounded.
        """
        if parts[0].numel() <= self._max_tagged:
            return tagged_sum(
                parts, dtype, self._words, self._num_tagged, self._farewell, self.index
            )
        slots = tuple(each.view(dtype) for each in self._slots)
        return flagged_sum(parts, slots, self._flags, self._num_flagged, self._farewell, self.index)


def memory_bytes(count: int) -> int:
    """Return the bytes of a rank's memory for ``PushedSums`` of ``count`` ranks."""
    return sum(_sizes(count))


def _sizes(count: int) -> tuple[int, int, int]:
    """Return the bytes of tagged words, of flags, and of slots."""
    numbers, num_bytes = _slot_sizes(count)
    return 2 * count * 8 * numbers, count * 4 * FLAGGED_PROGRAMS, 2 * count * num_bytes


def _slot_sizes(count: int) -> tuple[int, int]:
    """Return the numbers of a slot for tagged words, and the bytes of one for others."""
    others = max(count - 1, 1)
    tagged, flagged = MAX_TAGGED // others, MAX_BYTES // others
    return tagged // ALIGNMENT * ALIGNMENT, flagged // ALIGNMENT * ALIGNMENT


def shared_memories(
    size: int, folder: Path, store: Any, index: int, count: int
) -> tuple[list[Tensor], Any]:
    """Return memory of each rank that all can write, and an object that keeps it alive.

    Args:
        size: bytes of each.
        folder: folder through which the ranks have found each other; names the group.
        store: their store.
        index: number of this rank.
        count: number of ranks.
    """
    # Each process sees only its own GPU, whose number is 0.
    os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
    name: Any = folder.name
    device = torch.device("cuda", torch.cuda.current_device())
    group = ProcessGroup(store, index, count)
    _register_process_group(name, group)
    try:
        own = _SymmetricMemory.empty_strided_p2p((size,), (1,), torch.uint8, device, name)
        own.zero_()
        torch.cuda.synchronize()
        handle = _SymmetricMemory.rendezvous(own)
    finally:
        _unregister_process_group(name)
    return [handle.get_buffer(rank, (size,), torch.uint8) for rank in range(count)], (own, handle)
