"""Experts in MXFP4, unpacked in registers.

Tensor cores take their first operand from registers. Each thread of a warp holds certain numbers of
16 rows and 16 columns of it, a *fragment*. So that nothing has to move between threads, a thread
loads its own numbers, 16 bytes of them: the weights of 16 rows and 64 columns lie in memory in the
order in which 32 threads want them (see ``quantization/mxfp4_fragments``)::

    words [chunks, bands, 32 threads, 4]     ──►  w [16 * bands, 64 * chunks]
    a band: 16 rows                               numbers stay with their thread
    a chunk: 64 columns

A number of 4 bits, moved to the place of the sign, of the last two bits of the exponent and of the
first bit of the mantissa, is a bfloat16 number that is 2**126 times too small. That takes no table,
and is right for subnormal numbers, too. Two numbers at a time are moved and multiplied by their
scale, in assembly, because the compiler would move them one by one::

    e2m1      s ee m
    bfloat16  s 000000ee m000000

The factor would exceed bfloat16's exponents, so 2**64 of it is left out, and sums are multiplied by
that. Scales above 2**65 are therefore not told apart.

Sources: OCP Microscaling Formats (MX) Specification 1.0, 2023, section 5.3; Frantar et al. 2024,
*Marlin*, https://arxiv.org/abs/2408.11743, for weights in the order of fragments; the PTX ISA,
https://docs.nvidia.com/cuda/parallel-thread-execution/, for that order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.model.quantization.mxfp4_fragments import BAND, CHUNK, Fragments

AFTER = tl.constexpr(2.0**64)
"""Factor that is left out of bfloat16 numbers, and applied to their sums."""
_BAND, _CHUNK = tl.constexpr(BAND), tl.constexpr(CHUNK)


def _assembly() -> str:
    """Return the program that unpacks the 16 numbers of two words, two at a time.

    Operands 0 to 7 are the results, a pair of numbers each. Operands 8 and 9 are the words, 10 and
    11 the factors of even and of odd results.
    """
    lines = [
        ".reg .b32 low, high, even, odd, sign, rest, zero;",
        "mov.b32 even, $10;",
        "mov.b32 odd, $11;",
        "mov.b32 zero, 0x80008000;",
        "prmt.b32 low, $8, $9, 0x5410;",  # the lower halves of both words
        "prmt.b32 high, $8, $9, 0x7632;",
    ]
    for result in range(8):
        half = "low" if result < 4 else "high"
        bit = 4 * (result % 4)
        how, count = ("shl", 6 - bit) if bit <= 6 else ("shr", bit - 6)
        lines += [
            f"shl.b32 sign, {half}, {12 - bit};",
            "and.b32 sign, sign, 0x80008000;",
            f"{how}.b32 rest, {half}, {count};",
            "lop3.b32 rest, rest, 0x01C001C0, sign, 0xEA;",  # (rest & mask) | sign
            f"fma.rn.bf16x2 ${result}, rest, {'odd' if result % 2 else 'even'}, zero;",
        ]
    return "{" + "\n".join(lines) + "}"


_UNPACK = tl.constexpr(_assembly())
_OPERANDS = tl.constexpr(",".join(["=r"] * 8 + ["r"] * 4))
_RESULTS = tl.constexpr((tl.bfloat16,) * 8)


def dequantize(matrices: Fragments, dtype: torch.dtype) -> Tensor:
    """Return the matrices, ``[E, out, in]``, in a dtype of 16 or 32 bits."""
    count, bands, chunks = matrices.words.shape[:3]
    out = matrices.words.new_empty(count, matrices.out_size, matrices.in_size, dtype=dtype)
    at_once = 2
    _dequantize_kernel[(count * triton.cdiv(bands, at_once), triton.cdiv(chunks, at_once))](
        out,
        matrices.words,
        matrices.scales,
        IN=matrices.in_size,
        HEIGHT=matrices.out_size,
        BANDS=at_once,
        CHUNKS=at_once,
        PAIRED=matrices.paired,
        WIDE=dtype != torch.bfloat16,
        num_warps=2,
        **launch_options(out),
    )
    return out


@triton.jit
def _dequantize_kernel(
    out,
    words,
    scales,
    IN: tl.constexpr,
    HEIGHT: tl.constexpr,
    BANDS: tl.constexpr,
    CHUNKS: tl.constexpr,
    PAIRED: tl.constexpr,
    WIDE: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    ALL_BANDS: tl.constexpr = (HEIGHT + _BAND - 1) // _BAND
    ALL_CHUNKS: tl.constexpr = (IN + _CHUNK - 1) // _CHUNK
    PROGRAMS: tl.constexpr = (ALL_BANDS + BANDS - 1) // BANDS
    expert = (tl.program_id(0) // PROGRAMS).to(tl.int64)
    first = tl.program_id(0) % PROGRAMS * BANDS
    start = tl.program_id(1) * CHUNKS
    band = tl.minimum(first + tl.arange(0, BANDS), ALL_BANDS - 1)
    chunk = start + tl.arange(0, CHUNKS)
    some = ((expert * ALL_BANDS + band) * ALL_CHUNKS)[None, :] + chunk[:, None]
    w = load_fragments(
        words,
        scales,
        some,
        ALL_CHUNKS - start,
        BANDS,
        CHUNKS,
        ALL_CHUNKS % CHUNKS == 0,
        WIDE,
    ).to(tl.float32)
    if not WIDE:
        w *= AFTER
    row = tl.arange(0, _BAND * BANDS)
    if PAIRED:  # rows 0 to 7 of a band are gates, and 8 to 15 their ups
        row = row // _BAND * _BAND + row % 8 * 2 + row % _BAND // 8
    row += first * _BAND
    column = start * _CHUNK + tl.arange(0, _CHUNK * CHUNKS)
    target = out + (expert * HEIGHT + row)[:, None] * IN + column[None, :]
    exists = (row < HEIGHT)[:, None] & (column < IN)[None, :]
    tl.store(target, w.to(out.dtype.element_ty), mask=exists)


@triton.jit
def load_fragments(  # noqa: ANN201 - Triton's language
    words,
    scales,
    some,
    chunks,
    BANDS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ALL_EXIST: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Return 16 rows of each band and 64 columns of each chunk.

    Args:
        words: pointer to ``Fragments.words``.
        scales: pointer to ``Fragments.scales``.
        some: ``[CHUNKS, BANDS]``: index of each piece among all experts'.
        chunks: number of chunks that exist. The others are 0.
        BANDS: number of bands.
        CHUNKS: number of chunks.
        ALL_EXIST: whether all chunks exist.
        WIDE: whether to return float32; else bfloat16, and numbers that are 2**64 times too small.

    Returns:
        ``[16 * BANDS, 64 * CHUNKS]``.
    """
    thread, word = tl.arange(0, 32), tl.arange(0, 4)
    of_thread = some[:, :, None] * 32 + thread[None, None, :]
    words_at = words + of_thread[:, :, :, None] * 4 + word[None, None, None, :]
    scales_at = scales + some[:, :, None] * 8 + (thread // 4)[None, None, :]
    if ALL_EXIST:
        packed, scale = tl.load(words_at), tl.load(scales_at)
    else:
        exists = (tl.arange(0, CHUNKS) < chunks)[:, None, None]
        packed = tl.load(words_at, mask=exists[:, :, :, None], other=0)
        scale = tl.load(scales_at, mask=exists, other=0)
    even = _spread(_factor(scale, 0, WIDE), _factor(scale, 2, WIDE), CHUNKS, BANDS)
    odd = _spread(_factor(scale, 1, WIDE), _factor(scale, 3, WIDE), CHUNKS, BANDS)
    if WIDE:
        r0, r1 = _number(packed, even, 0), _number(packed, odd, 1)
        r2, r3 = _number(packed, even, 2), _number(packed, odd, 3)
        r4, r5 = _number(packed, even, 4), _number(packed, odd, 5)
        r6, r7 = _number(packed, even, 6), _number(packed, odd, 7)
    else:
        r0, r1, r2, r3, r4, r5, r6, r7 = tl.inline_asm_elementwise(
            _UNPACK, _OPERANDS, [packed, even, odd], dtype=_RESULTS, is_pure=True, pack=2
        )
    left = tl.join(tl.join(r0, r1), tl.join(r2, r3))
    right = tl.join(tl.join(r4, r5), tl.join(r6, r7))
    every = tl.reshape(tl.join(left, right), [CHUNKS, BANDS, 8, 4, 2, 2, 2, 2, 2])
    # chunk, band, row; of the column 2, 32 and 1; half of the band; of the column 8 and 16
    every = tl.permute(every, (1, 6, 2, 0, 4, 8, 7, 3, 5))
    return tl.reshape(every, [_BAND * BANDS, _CHUNK * CHUNKS])


@triton.jit
def _factor(scales, BYTE: tl.constexpr, WIDE: tl.constexpr):
    """Return 2**126 times the scale in a byte of each word, divided by ``AFTER``."""
    exponent = tl.minimum(((scales >> (8 * BYTE)) & 255) + 62, 254)
    if WIDE:
        return (exponent << 23).to(tl.float32, bitcast=True)
    else:  # noqa: RET505 - a branch of Triton's
        return (exponent << 7).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _spread(first, second, CHUNKS: tl.constexpr, BANDS: tl.constexpr):
    """Return the factors of each thread's 4 words, given those of the first two and of the others.

    Both are ``[CHUNKS, BANDS, 32]``, and the result is ``[CHUNKS, BANDS, 32, 4]``.
    """
    both = tl.join(first, second)[:, :, :, :, None]
    return tl.reshape(tl.broadcast_to(both, [CHUNKS, BANDS, 32, 2, 2]), [CHUNKS, BANDS, 32, 4])


@triton.jit
def _number(words, factor, INDEX: tl.constexpr):
    """Return one of the 8 numbers of each word, as float32."""
    bits = words >> (4 * INDEX)
    bits = ((bits & 8) << 28) | ((bits & 7) << 22)  # 2**126 times too small
    return bits.to(tl.float32, bitcast=True) * factor * AFTER
