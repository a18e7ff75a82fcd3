"""Experts in MXFP4, unpacked in registers.

Tensor cores take their first operand from registers. Each thread of a warp holds certain numbers of
16 rows and 16 columns of it, a *fragment*. So that nothing has to move between threads, a thread
loads its own numbers, 16 bytes of them: the weights of 16 rows and 64 columns lie in memory in the
order in which 32 threads want them (see ``quantization/mxfp4_fragments``)::

    words [bands, chunks, 32 threads, 4]     ──►  w [16 * bands, 64 * chunks]
    a band: 16 rows                               numbers stay with their thread
    a chunk: 64 columns

A word, rotated and masked, is two bfloat16 numbers that are 2**126 times too small: 4 bits are
where bfloat16 has its sign, the last two bits of its exponent and the first bit of its mantissa.
That takes no table, is right for subnormal numbers, too, and costs two instructions for two
numbers, as bits are stored as far apart as they are needed. Two numbers at a time are then
multiplied by their scale, in assembly, because the compiler would take them one by one::

    e2m1      s ee m
    bfloat16  s 000000ee m000000

The factor would exceed bfloat16's exponents, so 2**64 of it is left out, and sums are multiplied by
that. Scales above 2**65 are therefore not told apart.

Sources: OCP Microscaling Formats (MX) Specification 1.0, 2023, section 5.3; Frantar et al. 2024,
*Marlin*, https://arxiv.org/abs/2408.11743, for weights in the order of fragments; the PTX ISA,
https://docs.nvidia.com/cuda/parallel-thread-execution/, for that order.
"""

import triton
import triton.language as tl

from minimal_vllm.model.quantization.mxfp4_fragments import BAND, BITS, CHUNK, REST, ROTATIONS

AFTER = tl.constexpr(2.0**64)
"""Factor that is left out of bfloat16 numbers, and applied to their sums."""
_BAND, _CHUNK = tl.constexpr(BAND), tl.constexpr(CHUNK)
_REST, _ROTATIONS = tl.constexpr(REST), tl.constexpr(ROTATIONS)
_SHOWN = 0x81C081C0
"""Bits of two bfloat16 numbers that 4 bits can set."""


def _assembly() -> str:
    """Return the program that unpacks the 16 numbers of two words, two at a time.

    Operands 0 to 7 are the results, a pair of numbers each. Operands 8 and 9 are the words, 10 and
    12 the factors of even and of odd results.
    """
    lines = [
        ".reg .b32 rest, pair, zero;",
        "mov.b32 zero, 0x80008000;",
        f"lop3.b32 rest, $8, $9, {REST:#x}, 0xE4;",  # of the first word, else of the second
    ]
    result = 0
    for word, rotations in zip(("$8", "$9", "rest"), ROTATIONS, strict=True):
        for rotation in rotations:
            factor = "$12" if result % 2 else "$10"
            # Where no bit that is shown wraps around, a shift does, which other units can execute.
            wraps = rotation > min(BITS)
            turn = f"shf.l.wrap.b32 pair, {word}," if wraps else "shl.b32 pair,"
            lines += [
                f"{turn} {word}, {rotation};",
                f"and.b32 pair, pair, {_SHOWN:#x};",
                f"fma.rn.bf16x2 ${result}, pair, {factor}, zero;",
            ]
            result += 1
    return "{" + "\n".join(lines) + "}"


_UNPACK = tl.constexpr(_assembly())
_OPERANDS = tl.constexpr(",".join(["=&r"] * 8 + ["r"] * 6))
_RESULTS = tl.constexpr((tl.bfloat16,) * 8)


@triton.jit
def load_packed(words, scales, some, exists):  # noqa: ANN201 - Triton's language
    """Load the words and the scales of some pieces; those that don't exist are 0.

    The last dimension is contiguous and the bands come first. So the compiler lets each thread load
    the 16 bytes that it will unpack.

    Args:
        words: pointer to ``Fragments.words``.
        scales: pointer to ``Fragments.scales``.
        some: ``[BANDS, CHUNKS]``: index of each piece among all experts'.
        exists: whether a piece exists, ``[BANDS, CHUNKS]``. None: all do.

    Returns:
        ``[BANDS, CHUNKS, 128]`` and ``[BANDS, CHUNKS, 8]``.
    """
    words_at = words + some[:, :, None] * 128 + tl.arange(0, 128)[None, None, :]
    scales_at = scales + some[:, :, None] * 8 + tl.arange(0, 8)[None, None, :]
    if exists is None:
        packed, scale = tl.load(words_at), tl.load(scales_at)
    else:
        packed = tl.load(words_at, mask=exists[:, :, None], other=0)
        scale = tl.load(scales_at, mask=exists[:, :, None], other=0)
    return packed, scale


@triton.jit
def unpacked(packed, scale, WIDE: tl.constexpr):  # noqa: ANN201 - Triton's language
    """Return 16 rows of each band and 64 columns of each chunk.

    Args:
        packed: ``[BANDS, CHUNKS, 128]``, from ``load_packed``.
        scale: ``[BANDS, CHUNKS, 8]``, from ``load_packed``.
        WIDE: whether to return float32; else bfloat16, and in assembly.

    Returns:
        ``[16 * BANDS, 64 * CHUNKS]``.
    """
    BANDS: tl.constexpr = packed.shape[0]
    CHUNKS: tl.constexpr = packed.shape[1]
    of_thread = tl.broadcast_to(scale[:, :, :, None], [BANDS, CHUNKS, 8, 4])
    scale = tl.reshape(of_thread, [BANDS, CHUNKS, 32])
    packed = tl.reshape(packed, [BANDS, CHUNKS, 32, 4])
    even = _spread(_factor(scale, 0), _factor(scale, 2), BANDS, CHUNKS)
    odd = _spread(_factor(scale, 1), _factor(scale, 3), BANDS, CHUNKS)
    if WIDE:
        first, second = tl.split(tl.reshape(packed, [BANDS, CHUNKS, 32, 2, 2]))
        rest = (first & _REST) | (second & ~_REST)
        r0, r1 = _numbers(first, even, 0, 0), _numbers(first, odd, 0, 1)
        r2, r3 = _numbers(first, even, 0, 2), _numbers(second, odd, 1, 0)
        r4, r5 = _numbers(second, even, 1, 1), _numbers(second, odd, 1, 2)
        r6, r7 = _numbers(rest, even, 2, 0), _numbers(rest, odd, 2, 1)
    else:
        r0, r1, r2, r3, r4, r5, r6, r7 = tl.inline_asm_elementwise(
            _UNPACK, _OPERANDS, [packed, even, odd], _RESULTS, is_pure=True, pack=2
        )
    left = tl.join(tl.join(r0, r1), tl.join(r2, r3))
    right = tl.join(tl.join(r4, r5), tl.join(r6, r7))
    every = tl.reshape(tl.join(left, right), [BANDS, CHUNKS, 8, 4, 2, 2, 2, 2, 2])
    # band, row; chunk, of the column 2, 32 and 1; half of the band; of the column 8 and 16
    every = tl.permute(every, (0, 6, 2, 1, 4, 8, 7, 3, 5))
    return tl.reshape(every, [BANDS * _BAND, _CHUNK * CHUNKS])


@triton.jit
def _factor(scales, BYTE: tl.constexpr):
    """Return 2**126 times the scale in a byte of each word, divided by ``AFTER``, twice.

    Both halves of an int32 have it in bfloat16, where the exponent begins at bit 7.
    """
    return ((scales >> (8 * BYTE)) & 255) * 0x00800080


@triton.jit
def _spread(first, second, BANDS: tl.constexpr, CHUNKS: tl.constexpr):
    """Return the factors of each thread's 4 words, given those of the first two and of the others.

    Both are ``[BANDS, CHUNKS, 32]``, and the result is ``[BANDS, CHUNKS, 32, 4]``.
    """
    both = tl.join(first, second)[:, :, :, :, None]
    return tl.reshape(tl.broadcast_to(both, [BANDS, CHUNKS, 32, 2, 2]), [BANDS, CHUNKS, 32, 4])


@triton.jit
def _numbers(words, factors, PLACE: tl.constexpr, INDEX: tl.constexpr):
    """Return the numbers of both halves of words, ``[BANDS, CHUNKS, 32, 2]``, as float32.

    Factors and result are ``[BANDS, CHUNKS, 32, 4]``: neighbors are of both halves.
    """
    ROTATION: tl.constexpr = _ROTATIONS[PLACE][INDEX]
    wrapped = (words >> (32 - ROTATION)) & ((1 << ROTATION) - 1) if ROTATION else 0
    bits = ((words << ROTATION) | wrapped) & -0x7E3F7E40  # what ``_SHOWN`` shows
    halves = tl.reshape(tl.join(bits << 16, bits & -0x10000), factors.shape)
    factor = (factors & 0x7FFF0000).to(tl.float32, bitcast=True)
    return halves.to(tl.float32, bitcast=True) * factor * AFTER
