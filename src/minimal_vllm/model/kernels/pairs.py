"""Products of quantized numbers with one vector, two at a time in float16.

A GPU multiplies and adds two pairs of float16 numbers with one instruction, ``fma.f16x2``. Float16
has 11 bits, more than bfloat16, but its range is small. So each *piece* of the vector, the few
numbers that a thread multiplies with, is divided by a power of 2 that brings its largest number to
[1, 2). The sum over the piece is multiplied by it again, in float32. So only the few products of a
piece are added up in float16.

The compiler takes such numbers one by one, so that products of pairs are written in assembly.
There, an int32 holds two numbers, the first one in its lower half.

Source of the instructions: the PTX ISA, https://docs.nvidia.com/cuda/parallel-thread-execution/.
"""

import triton
import triton.language as tl


@triton.jit
def powers_of_2(largest):  # noqa: ANN201 - Triton's language
    """Return the largest power of 2 up to each number, float32 and not negative, and its inverse.

    It is at least 2**-95, so that the inverse has room for another factor.
    """
    bits = tl.maximum(largest.to(tl.int32, bitcast=True) & 0x7F800000, 0x10000000)
    inverse = (0x7F000000 - bits).to(tl.float32, bitcast=True)
    return bits.to(tl.float32, bitcast=True), inverse


@triton.jit
def pair_of_halves(first, second):  # noqa: ANN201 - Triton's language
    """Return pairs of float16 numbers as int32."""
    low = first.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (second.to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def four_of(tensor):  # noqa: ANN201 - Triton's language
    """Return the 4 parts of a tensor, ``[…, 2, 2]``, in order."""
    even, odd = tl.split(tensor)
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


def sum_of_pairs(result: str, pairs: list[str]) -> list[str]:
    """Return the assembly that adds up both numbers of each pair, in float32.

    It uses the registers ``low`` and ``high``, of 16 bits, and ``one`` and ``other``, of float32.

    Args:
        result: register of the sum.
        pairs: registers of the pairs.
    """
    lines = []
    for index, pair in enumerate(pairs):
        lines += [
            f"mov.b32 {{low, high}}, {pair};",
            "cvt.f32.f16 one, low;",
            "cvt.f32.f16 other, high;",
            "add.f32 one, one, other;",
            f"mov.f32 {result}, one;" if index == 0 else f"add.f32 {result}, {result}, one;",
        ]
    return lines
