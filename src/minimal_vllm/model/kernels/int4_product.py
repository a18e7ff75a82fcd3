"""Products of several tokens with weights in 4-bit integers, on tensor cores.

A program makes numbers of a tile of the weights in registers, and multiplies it with some tokens.
With many tokens, it would make each many times, so the whole matrix is dequantized to memory.

Four bits behind the exponent of 128 are a bfloat16 number, 128 plus what they count. From that, the
zero point and 128 are subtracted, two numbers at a time, in assembly. All of it is exact, as all
numbers are integers below 256. A group's sum is multiplied by its scale.

Sources: Frantar et al. 2024, *Marlin*, https://arxiv.org/abs/2408.11743, whose kernel does so for
batches; Kim et al. 2022, https://arxiv.org/abs/2211.10017 (numbers from bits in place).
"""

import triton
import triton.language as tl
from torch import Tensor, bfloat16, float16, float32

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.device.properties import num_sms
from minimal_vllm.model.kernels.int4 import RUNS, tensors_of
from minimal_vllm.model.quantization.int4 import (
    BITS,
    PER_WORD,
    RUN,
    SYMMETRIC_ZERO,
    WORDS,
    Int4Weight,
)

TILE_ROWS = 64
"""Rows per program of the product with several tokens."""
MAX_TOKENS = 64
"""Maximum number of tokens per program of the product with several tokens."""
DEPTH = 128
"""Columns that such a program multiplies per iteration, if a group has as many."""

_BITS, _PER_WORD = tl.constexpr(BITS), tl.constexpr(PER_WORD)
_RUN, _WORDS = tl.constexpr(RUN), tl.constexpr(WORDS)
_ZERO = tl.constexpr(SYMMETRIC_ZERO)
_MASK = tl.constexpr(15)
_BOTH = tl.constexpr(0x10001)
"""Factor that puts a number into both halves of a word."""


def _assembly(kind: str, large: int, one: int) -> str:
    """Return the program that makes the 16 numbers of two words, less zero points, two at a time.

    Operands 0 to 7 are the results, a pair of numbers each. Operands 8 and 9 are the words, and 10
    and 11 have the zero point in both halves.

    Args:
        kind: type of the numbers.
        large: bits of a number of that type, whose last four bits of mantissa count ones.
        one: bits of 1.
    """
    lines = [
        ".reg .b32 low, high, some, large, one, minus;",
        f"mov.b32 large, {large * 0x10001};",
        f"mov.b32 one, {one * 0x10001};",
        f"or.b32 minus, $10, {(large | 0x8000) * 0x10001};",
        "prmt.b32 low, $8, $9, 0x5410;",  # the lower halves of both words
        "prmt.b32 high, $8, $9, 0x7632;",
    ]
    for result in range(8):
        half = "low" if result < 4 else "high"
        lines += [
            f"shr.b32 some, {half}, {4 * (result % 4)};",
            "lop3.b32 some, some, 0x000F000F, large, 0xEA;",  # (some & mask) | large
            f"fma.rn.{kind}x2 ${result}, some, one, minus;",
        ]
    return "{" + "\n".join(lines) + "}"


_TO_BFLOAT16 = tl.constexpr(_assembly("bf16", 0x4300, 0x3F80))  # 128 and 1
_TO_FLOAT16 = tl.constexpr(_assembly("f16", 0x6400, 0x3C00))  # 1024 and 1
_KINDS = {float32: "f32", bfloat16: "bf16", float16: "f16"}
_OPERANDS = tl.constexpr(",".join(["=r"] * 8 + ["r"] * 4))
_BFLOAT16S, _FLOAT16S = tl.constexpr((tl.bfloat16,) * 8), tl.constexpr((tl.float16,) * 8)


def int4_product(x: Tensor, weight: Int4Weight, bias: Tensor | None) -> Tensor:
    """Return ``x @ weight.T + bias`` for some tokens, whose columns are in the weight's order.

    Args:
        x: ``[T, in]``, contiguous.
        weight: matrix ``[out, in]``.
        bias: ``[out]`` or None.

    Returns:
        ``[T, out]``
    """
    num_tokens, out_size = len(x), weight.out_size
    y = x.new_empty(num_tokens, out_size)
    tokens = min(max(16, triton.next_power_of_2(num_tokens)), MAX_TOKENS)
    warps = _warps(out_size, tokens, num_sms(x.device))
    _int4_product_kernel[(triton.cdiv(out_size, TILE_ROWS), triton.cdiv(num_tokens, tokens))](
        x, y if bias is None else bias, y, num_tokens,
        **tensors_of(weight, ordered=False), OUT=out_size, IN=weight.in_size, ROWS=TILE_ROWS,
        TOKENS=tokens, DEPTH=min(DEPTH, weight.group_size), BIAS=bias is not None,
        KIND=_KINDS[x.dtype], num_warps=warps, num_stages=2 if x.dtype == float32 else 4,
        **launch_options(x),
    )  # fmt: skip
    return y


def _warps(out_size: int, tokens: int, sms: int) -> int:
    """Return a program's warps: the fastest of 4 and 8 on an H200."""
    return 8 if tokens <= 16 and out_size >= 2 * TILE_ROWS * sms else 4


def int4_dequantize(weight: Int4Weight, like: Tensor) -> Tensor:
    """Return the matrix, ``[out, in]``, in the dtype of ``like``, its columns in their order."""
    out = like.new_empty(weight.out_size, weight.in_size)
    runs = min(RUNS, triton.next_power_of_2(weight.in_size // RUN))
    _int4_dequantize_kernel[(weight.out_size, triton.cdiv(weight.in_size, runs * RUN))](
        out, **tensors_of(weight, ordered=False), IN=weight.in_size, RUNS=runs,
        num_warps=4, **launch_options(like),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["num_tokens"])
def _int4_product_kernel(
    x,
    bias,
    y,
    num_tokens,
    packed,
    scale,
    zero,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    ZEROS: tl.constexpr,
    BIAS: tl.constexpr,
    KIND: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    run, word, column = tl.arange(0, DEPTH // _RUN), tl.arange(0, _WORDS), tl.arange(0, DEPTH)
    is_token = token < num_tokens
    safe_row = tl.minimum(row, OUT - 1).to(tl.int64)
    word_of_row = run[:, None] * _WORDS + word[None, :]
    words_at = packed + safe_row[:, None, None] * (IN // _PER_WORD) + word_of_row[None]
    inputs_at = x + token.to(tl.int64)[None, :] * IN + column[:, None]
    groups_at = safe_row * (IN // GROUP)
    wait_for_previous(EARLY)
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    for start in range(0, IN, DEPTH):
        if IN % DEPTH == 0:
            words = tl.load(words_at + start // _PER_WORD)
            inputs = tl.load(inputs_at + start, mask=is_token[None, :], other=0.0)
        else:
            exists = (start + run * _RUN < IN)[None, :, None]
            words = tl.load(words_at + start // _PER_WORD, mask=exists, other=0)
            is_input = (start + column < IN)[:, None] & is_token[None, :]
            inputs = tl.load(inputs_at + start, mask=is_input, other=0.0)
        zeros = tl.full([ROWS], _ZERO, tl.int32)
        if ZEROS:
            zeros = tl.load(zero + groups_at + start // GROUP).to(tl.int32)
        numbers = _numbers(words, zeros[:, None, None], KIND)
        # Scales are factors of the partial sums, which are fewer than the weights.
        scales = tl.load(scale + groups_at + start // GROUP).to(tl.float32)
        total += tl.dot(numbers, inputs, input_precision="ieee") * scales[:, None]
    if BIAS:
        total += tl.load(bias + row, mask=row < OUT, other=0.0).to(tl.float32)[:, None]
    at = token.to(tl.int64)[None, :] * OUT + row[:, None]
    tl.store(y + at, total, mask=(row < OUT)[:, None] & is_token[None, :])


@triton.jit
def _numbers(words, zeros, KIND: tl.constexpr):
    """Return the numbers of some rows' words, ``[ROWS, RUNS, 4]``, less zeros, ``[ROWS, 1, 1]``.

    Returns:
        ``[ROWS, 32 * RUNS]`` in the dtype that ``KIND`` names.
    """
    ROWS: tl.constexpr = words.shape[0]
    COLUMNS: tl.constexpr = words.shape[1] * _RUN
    if KIND == "f32":
        shift = (tl.arange(0, _PER_WORD) * _BITS)[None, None, :, None]
        integers = ((words[:, :, None, :] >> shift) & _MASK) - zeros[:, :, None, :]
        every = integers.to(tl.float32)
    else:
        zeros = tl.broadcast_to(zeros * _BOTH, words.shape)
        r0, r1, r2, r3, r4, r5, r6, r7 = tl.inline_asm_elementwise(
            _TO_BFLOAT16 if KIND == "bf16" else _TO_FLOAT16,
            _OPERANDS,
            [words, zeros],
            dtype=_BFLOAT16S if KIND == "bf16" else _FLOAT16S,
            is_pure=True,
            pack=2,
        )
        left = tl.join(tl.join(r0, r1), tl.join(r2, r3))
        right = tl.join(tl.join(r4, r5), tl.join(r6, r7))
        # row, run, word, and the bits of the number's place in the word, the lowest first
        every = tl.permute(tl.join(left, right), (0, 1, 5, 4, 3, 2))
    return tl.reshape(every, [ROWS, COLUMNS])


@triton.jit
def _int4_dequantize_kernel(
    out,
    packed,
    scale,
    zero,
    IN: tl.constexpr,
    RUNS: tl.constexpr,
    GROUP: tl.constexpr,
    ZEROS: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    row = tl.program_id(0).to(tl.int64)
    run, word = tl.program_id(1) * RUNS + tl.arange(0, RUNS), tl.arange(0, _WORDS)
    is_run = run * _RUN < IN
    words_at = packed + row * (IN // _PER_WORD) + (run * _WORDS)[:, None] + word[None, :]
    words = tl.load(words_at, mask=is_run[:, None], other=0)
    of_group = row * (IN // GROUP) + run * _RUN // GROUP
    scales = tl.load(scale + of_group, mask=is_run, other=0.0).to(tl.float32)[:, None, None]
    zeros = tl.full([RUNS, 1, 1], _ZERO, tl.int32)
    if ZEROS:
        zeros = tl.load(zero + of_group, mask=is_run, other=0).to(tl.int32)[:, None, None]
    shift = (tl.arange(0, _PER_WORD) * _BITS)[None, :, None]
    numbers = ((tl.reshape(words, [RUNS, 1, _WORDS]) >> shift) & _MASK) - zeros
    weights = (numbers.to(tl.float32) * scales).to(out.dtype.element_ty)
    column = tl.program_id(1) * (RUNS * _RUN) + tl.arange(0, RUNS * _RUN)
    tl.store(out + row * IN + column, tl.reshape(weights, [RUNS * _RUN]), mask=column < IN)
