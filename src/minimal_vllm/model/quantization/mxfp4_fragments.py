"""Experts in MXFP4 in the order in which the threads of a GPU multiply them.

Tensor cores multiply 16 rows by 16 columns of the first operand. Thread ``t`` of 32 holds of them
rows ``t // 4`` and ``t // 4 + 8``, and columns ``2 * (t % 4)`` and the next one, and the same plus
8. A thread gets its numbers of a *band*, 16 rows, and of a *chunk*, 64 columns, in 4 words. Words 0
and 1 have the numbers of one group of MXFP4, and 2 and 3 those of the next: 8 numbers i, each with
its neighbor in the next column::

    column of the chunk  =  32 * (word // 2) + 16 * (i // 4) + 8 * (i // 2 % 2)
                            + 2 * (thread % 4) + half of the word
    row of the band      =  8 * (i % 2) + thread // 4

So a word of 4 scales has all of a chunk that a thread needs, and 4 threads share it.

A word that is rotated and masked shows a number and its neighbor in bfloat16, but for a factor: see
``unpack``. So the bits of a number lie as far apart as bfloat16 has them, and those of several
numbers are interleaved. Half a word, and which number i each bit belongs to::

    bfloat16       s------eem------    sign, exponent, mantissa
    first word     0222177000211176
    second word    6635554763335444
    rest           66---7776-----76    bits of both words that are left

Where gate and up take turns, a band has the gates of 8 columns of the result in rows 0 to 7, and
their ups in rows 8 to 15: a thread has both.

Source of the order: the PTX ISA, "Matrix Fragments for mma.m16n8k16",
https://docs.nvidia.com/cuda/parallel-thread-execution/.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from minimal_vllm.model.quantization.mxfp4 import Mxfp4Matrices
from minimal_vllm.model.quantization_config import MXFP4_GROUP

BAND = 16
"""Number of rows that threads of a warp hold together."""
CHUNK = 64
"""Number of columns of which a thread loads its numbers at once."""
BITS = (6, 7, 8, 15)
"""Places in bfloat16 of the 4 bits of a number, the lowest first."""
ROTATIONS = ((0, 4, 10), (2, 6, 12), (8, 14))
"""Rotations to the left that show the numbers of the first word, of the second, and of ``REST``."""
REST = 0x06030603
"""Bits that the last two numbers have in the first word. In the second one, they have others."""
MORE, MOST = 62, 254
"""Addend of a scale's exponent when it is stored, and the largest stored one. The sum is the
exponent of the factor of 4-bit numbers that bfloat16 shows, but for ``unpack.AFTER``."""


@dataclass(frozen=True, slots=True)
class Fragments:
    """One matrix per expert, in MXFP4, in the order of fragments.

    What is missing in the last band or chunk is 0.
    """

    words: Tensor
    """``[E, bands, chunks, 32, 4]`` int32: the numbers of each thread."""
    scales: Tensor
    """``[E, bands, chunks, 8]`` int32: those of each thread that is a multiple of 4."""
    bias: Tensor | None
    """``[E, out]``, contiguous, or None."""
    out_size: int
    """Length of an output vector."""
    in_size: int
    """Length of an input vector."""
    interleaved: bool
    """Whether rows of gate and up take turns in the matrix."""


class FragmentMatrices(Mxfp4Matrices):
    """Matrices in MXFP4 that are brought into the order of fragments once they are loaded.

    Args:
        count: number of experts.
        out_size: length of an output vector.
        in_size: length of an input vector.
        interleaved: whether rows of gate and up alternate.
    """

    def __init__(self, count: int, out_size: int, in_size: int, *, interleaved: bool) -> None:
        super().__init__(count, out_size, in_size)
        self.out_size, self.interleaved = out_size, interleaved

    def reorder(self) -> None:
        """Bring the matrices into order, expert by expert, and in place if nothing is missing."""
        count = len(self.packed)
        bands, chunks = -(-self.out_size // BAND), -(-self.in_size // CHUNK)
        words = _memory_for(self.packed, (count, bands, chunks, 32, 4))
        scales = _memory_for(self.scale, (count, bands, chunks, 8))
        for expert in range(count):
            some_words, some_scales = to_fragments(
                self.packed[expert], self.scale[expert], interleaved=self.interleaved
            )
            words[expert].copy_(some_words)
            scales[expert].copy_(some_scales)
        self.packed = nn.Parameter(words, requires_grad=False)
        self.scale = nn.Parameter(scales, requires_grad=False)

    def fragments(self, bias: Tensor | None) -> Fragments:
        """Return the matrices as kernels read them, with a bias."""
        return Fragments(
            self.packed, self.scale, bias, self.out_size, self.in_size, self.interleaved
        )


def to_fragments(packed: Tensor, scale: Tensor, *, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Bring a matrix in MXFP4 into the order of fragments.

    Args:
        packed: ``[out, in / 2]`` uint8; see ``Mxfp4Matrices``.
        scale: ``[out, in / 32]`` uint8.
        interleaved: whether rows of gate and up alternate.

    Returns:
        Words, ``[bands, chunks, 32, 4]`` int32, and scales, ``[bands, chunks, 8]`` int32.
    """
    rows, columns = len(packed), 2 * packed.shape[1]
    bands, chunks = -(-rows // BAND), -(-columns // CHUNK)
    numbers = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)
    numbers = pad(numbers, (0, CHUNK * chunks - columns, 0, BAND * bands - rows))
    groups = CHUNK // MXFP4_GROUP
    scale = (scale.int() + MORE).clamp(max=MOST).to(torch.uint8)
    scale = pad(scale, (0, groups * chunks - scale.shape[1], 0, BAND * bands - rows))
    # band, half of it, row; chunk, then of the column: 16, 8, 2, 1
    numbers = _by_halves(numbers, bands, interleaved).reshape(bands, 2, 8, chunks, 4, 2, 4, 2)
    numbers = numbers.permute(0, 3, 2, 6, 4, 5, 1, 7).reshape(bands, chunks, 32, 2, 8, 2)
    words = numbers.new_zeros(bands, chunks, 32, 2, 2, dtype=torch.int32)
    for index, (place, rotation) in enumerate(_numbers()):
        for half in range(2):
            for bit, target in enumerate(BITS):
                source = (16 * half + target - rotation) % 32
                word = place if place < 2 else 1 - (REST >> source & 1)
                words[..., word] |= (numbers[..., index, half] >> bit & 1).int() << source
    scale = _by_halves(scale, bands, interleaved).reshape(bands, 2, 8, chunks, groups)
    scales = scale.permute(0, 3, 2, 4, 1).flatten(-2).contiguous().view(torch.int32)
    return words.flatten(3), scales.reshape(bands, chunks, 8)


def _numbers() -> list[tuple[int, int]]:
    """Return of each of 8 numbers where it is, an index of ``ROTATIONS``, and its rotation."""
    return [(place, each) for place, some in enumerate(ROTATIONS) for each in some]


def _by_halves(matrix: Tensor, bands: int, interleaved: bool) -> Tensor:
    """Return ``[bands, 2, 8, columns]``: 8 rows for each half of a band."""
    if interleaved:
        return matrix.view(bands, 8, 2, -1).transpose(1, 2)
    return matrix.view(bands, 2, 8, -1)


def _memory_for(old: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return int32 memory of a shape: that of ``old`` if it has as many bytes."""
    size = torch.Size(shape).numel()
    if 4 * size == old.numel():
        return old.data.view(-1).view(torch.int32).view(shape)
    return torch.empty(shape, dtype=torch.int32, device=old.device)
