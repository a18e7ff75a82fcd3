"""Grouped products with experts in MXFP4, which are unpacked in registers.

The weights are the first operand of tensor cores, and a program multiplies some rows of them with
some tokens: the product is transposed. Its weights come in the order in which its threads need
them; see ``unpack``. The rest is as in ``grouped``.

Bytes: the weights of every expert that has a token, once if all of its tokens fit into one block;
FLOPs: ``6 * T * k * hidden * inner``. With many tokens the weights are unpacked once for each block
of them, beside the products of other warps. That takes less time than to unpack them to memory.

Source of MXFP4: OCP Microscaling Formats (MX) Specification 1.0, 2023.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.kernels.activation import combined, gate_options
from minimal_vllm.model.kernels.grouped import Tiles, find_expert
from minimal_vllm.model.kernels.route import ExpertLists
from minimal_vllm.model.kernels.unpack import AFTER, load_packed, unpacked
from minimal_vllm.model.quantization.mxfp4_fragments import BAND, CHUNK, Fragments
from minimal_vllm.model.supported import Gate

HALVED = 64
"""Rows of the tiles of which half are multiplied where a block has no more than half of them."""
MAX_REGISTERS = 128
"""Maximum number of a thread's registers with 64 rows: 4 programs then fit into an SM."""
_BAND, _CHUNK = tl.constexpr(BAND), tl.constexpr(CHUNK)


def choose_tiles(pairs: int, num_experts: int, *, gated: bool) -> Tiles:
    """Return the tiles for ``pairs`` of tokens and experts: the fastest of some 20 on an H200.

    Args:
        pairs: number of pairs of a token and an expert.
        num_experts: number of experts.
        gated: whether a program multiplies with two matrices, gate and up.
    """
    mean = pairs / num_experts
    if mean <= 10:
        return Tiles(16, 64, 64, 4, 4)
    if mean <= 20:
        return Tiles(32, 64, 64, 4, 4)
    if mean <= 64:
        return Tiles(64, 64, 64, 4, 4)
    if mean <= 256 or gated:
        return Tiles(128, 64 if gated else 128, 64, 4, 4)
    return Tiles(256, 128, 64, 8, 3)


def gated_fragment_product(
    x: Tensor, lists: ExpertLists, per_token: int, gate_up: Fragments, gate: Gate
) -> Tensor:
    """Return what ``gated_grouped_product`` returns, for matrices in MXFP4."""
    inner, pairs = gate_up.out_size // 2, len(x) * per_token
    out = x.new_empty(len(x), per_token, inner)
    tiles = choose_tiles(pairs, len(lists.counts), gated=True)
    _launch(x, None, lists, per_token, gate_up, out, tiles, gate)
    return out


def weighted_fragment_product(
    inner: Tensor, weights: Tensor, lists: ExpertLists, down: Fragments
) -> Tensor:
    """Return what ``weighted_grouped_product`` returns, for matrices in MXFP4."""
    tokens, per_token, _ = inner.shape
    out = inner.new_empty(per_token, tokens, down.out_size)
    tiles = choose_tiles(tokens * per_token, len(lists.counts), gated=False)
    _launch(inner, weights, lists, per_token, down, out, tiles, None)
    return out


def _launch(
    x: Tensor,
    weights: Tensor | None,
    lists: ExpertLists,
    per_token: int,
    matrices: Fragments,
    out: Tensor,
    tiles: Tiles,
    gate: Gate | None,
) -> None:
    count, tokens = lists.members.shape
    pairs = tokens * per_token
    # Each expert's last block may be partly empty, all others are full.
    max_blocks = pairs // tiles.rows + min(count, pairs)
    bias = matrices.bias
    column_tiles = triton.cdiv(out.shape[-1], tiles.columns)
    _grouped_fragments_kernel[(max_blocks * column_tiles,)](
        x,
        lists.counts if weights is None else weights,
        lists.counts,
        lists.members,
        out,
        tokens,
        matrices.words,
        matrices.scales,
        out if bias is None else bias,
        BIAS=bias is not None,
        COUNT=count,
        COUNTS=triton.next_power_of_2(count),
        PER_TOKEN=per_token,
        IN=matrices.in_size,
        OUT=out.shape[-1],
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        DEPTH=tiles.depth,
        GATED=gate is not None,
        HALVES=tiles.rows == HALVED,
        **gate_options(gate or "silu"),  # without a gate, they are not read
        WIDE=x.dtype != torch.bfloat16,
        num_warps=tiles.warps,
        num_stages=2 if x.dtype == torch.float32 else tiles.stages,
        maxnreg=MAX_REGISTERS if tiles.rows == 64 and x.dtype == torch.bfloat16 else None,
        **launch_options(x),
    )


@triton.jit(do_not_specialize=["tokens"])
def _grouped_fragments_kernel(
    x,
    weights,
    counts,
    members,
    out,
    tokens,
    words,
    scales,
    bias,
    BIAS: tl.constexpr,
    COUNT: tl.constexpr,
    COUNTS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GATED: tl.constexpr,
    HALVES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    SLOPE: tl.constexpr,
    WIDE: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    COLUMN_TILES: tl.constexpr = (OUT + COLUMNS - 1) // COLUMNS
    tile = tl.program_id(0) % COLUMN_TILES
    block = tl.program_id(0) // COLUMN_TILES
    expert, first, count = find_expert(counts, block, COUNT, COUNTS, ROWS)
    if expert == COUNT:
        return
    members += expert * tokens
    if HALVES and count - first <= ROWS // 2:
        _multiply(
            x, weights, members, out, tokens, words, scales, bias, expert, first, count, tile,
            BIAS, PER_TOKEN, IN, OUT, ROWS // 2, COLUMNS, DEPTH, GATED,
            ACTIVATION, LIMIT, SLOPE, WIDE,
        )  # fmt: skip
    else:
        _multiply(
            x, weights, members, out, tokens, words, scales, bias, expert, first, count, tile,
            BIAS, PER_TOKEN, IN, OUT, ROWS, COLUMNS, DEPTH, GATED,
            ACTIVATION, LIMIT, SLOPE, WIDE,
        )  # fmt: skip


@triton.jit
def _multiply(
    x,
    weights,
    members,
    out,
    tokens,
    words,
    scales,
    bias,
    expert,
    first,
    count,
    tile,
    BIAS: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    SLOPE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Compute a tile of columns for an expert's pairs from place ``first`` on, ``ROWS`` of them."""
    HEIGHT: tl.constexpr = 2 * OUT if GATED else OUT
    BANDS: tl.constexpr = (2 * COLUMNS if GATED else COLUMNS) // _BAND
    CHUNKS: tl.constexpr = DEPTH // _CHUNK
    ALL_BANDS: tl.constexpr = (HEIGHT + _BAND - 1) // _BAND
    ALL_CHUNKS: tl.constexpr = (IN + _CHUNK - 1) // _CHUNK
    ALL_EXIST: tl.constexpr = ALL_CHUNKS % CHUNKS == 0
    place = first + tl.arange(0, ROWS)
    is_row = place < count
    # Rows that don't exist are not read: a tile of rows is read as often as there are columns.
    pair = tl.load(members + tl.minimum(place, count - 1))
    row = pair // PER_TOKEN if GATED else pair
    inner = tl.arange(0, DEPTH)
    x_pointers = x + row.to(tl.int64)[:, None] * IN + inner[None, :]
    band = tl.minimum(tile * BANDS + tl.arange(0, BANDS), ALL_BANDS - 1)
    chunk = tl.arange(0, CHUNKS)[None, :]
    first_chunk = ((expert.to(tl.int64) * ALL_BANDS + band) * ALL_CHUNKS)[:, None]
    total = tl.zeros([_BAND * BANDS, ROWS], tl.float32)
    for start in range(0, ALL_CHUNKS, CHUNKS):
        exists = is_row[:, None]
        if IN % DEPTH != 0:
            exists = exists & (inner < IN - start * _CHUNK)[None, :]
        xs = tl.load(x_pointers + start * _CHUNK, mask=exists, other=0.0)
        some = first_chunk + (start + chunk)
        is_chunk = None if ALL_EXIST else some - first_chunk < ALL_CHUNKS
        packed, scale = load_packed(words, scales, some, is_chunk)
        w = unpacked(packed, scale, WIDE).to(xs.dtype)
        total = tl.dot(w, xs.T, total, input_precision="ieee")
    if not WIDE:
        total *= AFTER
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < OUT
    kind = out.dtype.element_ty
    target = pair
    if GATED:
        pairs = tl.permute(tl.reshape(total, [BANDS, 2, 8, ROWS]), (0, 2, 3, 1))
        gate, up = tl.split(pairs)
        gate, up = tl.reshape(gate, [COLUMNS, ROWS]), tl.reshape(up, [COLUMNS, ROWS])
        if BIAS:
            bias_of_gate = bias + expert * HEIGHT + 2 * column
            gate += tl.load(bias_of_gate, mask=is_column, other=0.0).to(tl.float32)[:, None]
            up += tl.load(bias_of_gate + 1, mask=is_column, other=0.0).to(tl.float32)[:, None]
        result = combined(gate.to(kind), up.to(kind), ACTIVATION, LIMIT, SLOPE)
    else:
        if BIAS:
            of_expert = bias + expert * HEIGHT + column
            total += tl.load(of_expert, mask=is_column, other=0.0).to(tl.float32)[:, None]
        weight = tl.load(weights + pair, mask=is_row, other=0.0)
        result = (total * weight[None, :]).to(kind)
        target = pair % PER_TOKEN * tokens + pair // PER_TOKEN
    offsets = target.to(tl.int64)[None, :] * OUT + column[:, None]
    tl.store(out + offsets, result, mask=is_column[:, None] & is_row[None, :])
