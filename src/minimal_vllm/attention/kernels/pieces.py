"""Cutting a decode step's contexts into pieces of about the same length, on the GPU.

A decode step reads every request's keys and values once and does little else. It runs at the memory
bandwidth if all of the GPU's SMs read until the end. But requests differ in length: with one
program per request, most SMs would be idle while the longest request is read. So contexts are cut
into *pieces* of at most ``piece_size`` tokens (split-KV, "flash-decoding": Dao et al. 2023,
https://crfm.stanford.edu/2023/10/12/flashdecoding.html)::

    lengths       A ██████████████   B ███   C ████████
    pieces        A0 ██████ A1 ██████ A2 ██   B0 ███   C0 ██████ C1 ██
    first_piece   A: 0                        B: 3     C: 4         end: 6
    owner         0         0         0       1        2         2

A kernel makes the cut, because a CUDA graph can't ask the CPU. It runs once a step, for all layers.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous

TILE = 64
"""Unit of a piece's length, in tokens."""
PIECES_PER_REQUEST = 2
"""Average number of pieces per request to aim for: short pieces fill the gaps at the end."""
PROGRAMS_OF_FEW, MIN_OF_FEW = 2, TILE
"""Programs per SM to aim for, and minimum number of tokens per piece, if there are fewer programs
than SMs before anything is cut: every cut helps."""
PROGRAMS_OF_MANY, MIN_OF_MANY = 16, 256
"""Values of both for more programs: a cut then costs a merge, and only evens out the end."""
NO_REQUEST = -1
"""Placeholder for the index of a request. Kernels test the sign, which tells the compiler that the
index of a request is not negative."""
PADDING = tl.constexpr(NO_REQUEST)
"""``NO_REQUEST`` for kernels."""
ALL = 1 << 30
"""Size of a window that all tokens of a request fit into."""


class Pieces(NamedTuple):
    """Pieces that the contexts of a step were cut into."""

    owner: Tensor
    """``[most pieces]`` int32: the request that a piece belongs to; ``NO_REQUEST`` after the
    last piece."""
    first_piece: Tensor
    """``[R + 1]`` int32: request ``r`` has the pieces from ``first_piece[r]`` up to, but not
    including, ``first_piece[r + 1]``."""
    piece_size: Tensor
    """``[1]`` int32: maximum number of tokens per piece."""
    start: Tensor
    """``[R]`` int32: each request's first token that is read."""


def max_pieces(
    num_requests: int, num_kv_heads: int, num_sms: int, window: int | None = None
) -> int:
    """Return the maximum number of pieces of a step with ``num_requests`` requests.

    Args:
        num_requests: number of requests.
        num_kv_heads: number of programs that read each piece.
        num_sms: number of the GPU's streaming multiprocessors.
        window: number of each request's last tokens that are read. None: all.
    """
    most = num_requests + _wanted_pieces(num_requests, num_kv_heads, num_sms)
    if window is None:
        return most
    return min(most, num_requests * -(-window // _min_piece(num_requests, num_kv_heads, num_sms)))


def _wanted_pieces(num_requests: int, num_kv_heads: int, num_sms: int) -> int:
    are_few = _are_few(num_requests, num_kv_heads, num_sms)
    programs = num_sms * (PROGRAMS_OF_FEW if are_few else PROGRAMS_OF_MANY)
    return -(-programs // num_kv_heads) + PIECES_PER_REQUEST * num_requests


def _min_piece(num_requests: int, num_kv_heads: int, num_sms: int) -> int:
    are_few = _are_few(num_requests, num_kv_heads, num_sms)
    return MIN_OF_FEW if are_few else MIN_OF_MANY


def _are_few(num_requests: int, num_kv_heads: int, num_sms: int) -> bool:
    return num_requests * num_kv_heads < num_sms


def cut(
    starts: Tensor, ends: Tensor, num_kv_heads: int, num_sms: int, window: int | None = None
) -> Pieces:
    """Cut the tokens ``starts[r] … ends[r]`` of each request into pieces.

    Args:
        starts: ``[R]`` int32.
        ends: ``[R]`` int32; a request with ``ends <= starts`` has no pieces.
        num_kv_heads: number of programs that read each piece.
        num_sms: number of the GPU's streaming multiprocessors.
        window: number of each request's last tokens that are read. None: all.
    """
    num_requests = len(ends)
    size = max_pieces(num_requests, num_kv_heads, num_sms, window)
    pieces = Pieces(
        owner=ends.new_empty(size),
        first_piece=ends.new_empty(num_requests + 1),
        piece_size=ends.new_empty(1),
        start=ends.new_empty(num_requests),
    )
    _cut_kernel[(1,)](
        starts,
        ends,
        pieces,
        num_requests,
        size,
        ALL if window is None else window,
        _wanted_pieces(num_requests, num_kv_heads, num_sms),
        _min_piece(num_requests, num_kv_heads, num_sms),
        TILE=TILE,
        # A lower bound, so that all batches of a server use one compiled kernel.
        REQUESTS=max(triton.next_power_of_2(num_requests), 256),
        PIECES=max(triton.next_power_of_2(size), 2048),
        num_warps=8,
        **launch_options(ends),
    )
    return pieces


def cut_reference(
    starts: Tensor, ends: Tensor, num_kv_heads: int, num_sms: int, window: int | None = None
) -> Pieces:
    """Cut like ``cut``, in plain PyTorch; for tests."""
    num_requests = len(ends)
    starts = torch.maximum(starts, ends - (ALL if window is None else window))
    lengths = (ends - starts).clamp(min=0)
    wanted = _wanted_pieces(num_requests, num_kv_heads, num_sms)
    piece_size = -(-int(lengths.sum()) // wanted)
    least = _min_piece(num_requests, num_kv_heads, num_sms)
    piece_size = max(-(-piece_size // TILE) * TILE, least)
    counts = -(-lengths // piece_size)
    most = max_pieces(num_requests, num_kv_heads, num_sms, window)
    owner = ends.new_full((most,), NO_REQUEST)
    owned = torch.arange(num_requests, dtype=torch.int32).repeat_interleave(counts)
    owner[: len(owned)] = owned
    first_piece = torch.cat((counts.new_zeros(1), counts.cumsum(0))).int()
    return Pieces(owner, first_piece, ends.new_tensor([piece_size]), starts)


@triton.jit(
    do_not_specialize=["num_requests", "size", "window", "wanted", "least"],
    do_not_specialize_on_alignment=["starts", "ends"],
)
def _cut_kernel(
    starts,
    ends,
    pieces,
    num_requests,
    size,
    window,
    wanted,
    least,
    TILE: tl.constexpr,
    REQUESTS: tl.constexpr,
    PIECES: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    request = tl.arange(0, REQUESTS)
    exists = request < num_requests
    start = tl.load(starts + request, mask=exists, other=0)
    end = tl.load(ends + request, mask=exists, other=0)
    start = tl.maximum(start, end - window)
    tl.store(pieces.start + request, start, mask=exists)
    lengths = tl.maximum(end - start, 0)
    tiles = tl.cdiv(tl.cdiv(tl.sum(lengths), wanted), TILE)
    length = tl.maximum(tiles * TILE, least)
    counts = tl.cdiv(lengths, length)
    ends_at = tl.cumsum(counts)
    first = ends_at - counts
    tl.store(pieces.piece_size, length)
    tl.store(pieces.first_piece, 0)
    tl.store(pieces.first_piece + 1 + request, ends_at, mask=exists)

    piece = tl.arange(0, PIECES)
    tl.store(pieces.owner + piece, PADDING, mask=(piece < size) & (piece >= tl.sum(counts)))
    for index in range(tl.max(counts)):
        tl.store(pieces.owner + first + index, request, mask=exists & (index < counts))
