"""Exercise four-bits: turn a matrix of 4-bit integers back into numbers.

The idea. A weight is rounded to one of 16 numbers. Some neighboring columns of a row, a *group*,
share a scale and a zero point::

    weight = (number - zero) * scale          number and zero: 0 … 15

An int32, a *word*, holds ``PER_WORD`` = 8 numbers. ``WORDS`` = 4 words hold a run of 32 columns,
and the same bits of all four hold neighboring columns::

    bits of the 4 words      0 … 3    4 … 7    8 … 11    …    28 … 31
    columns of their run     0 … 3    4 … 7    8 … 11    …    28 … 31

What to write: ``unpack``, which separates the numbers, and ``MyInt4Weight.dequantized``. The class
has ``packed``, ``scale``, ``zero`` (None: all zero points are ``SYMMETRIC_ZERO``), ``group_size``
and ``out_size``. If ``order`` is not None, column i of what is stored is column ``order[i]`` of the
matrix.

How it is checked: random matrices with all kinds of groups, compared with the engine's own class.

    minimal-vllm learn check four-bits
"""

import torch
from torch import Tensor

from minimal_vllm.model.quantization.int4 import PER_WORD, SYMMETRIC_ZERO, WORDS, Int4Weight

__all__ = ["PER_WORD", "SYMMETRIC_ZERO", "WORDS", "MyInt4Weight", "unpack"]


def unpack(packed: Tensor) -> Tensor:
    """Unpack words, ``[out, in / 8]`` int32, into numbers, ``[out, in]`` uint8."""
    raise NotImplementedError


class MyInt4Weight(Int4Weight):
    """Matrix in 4-bit integers."""

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix, ``[out, in]``, computed in float32 and rounded to ``dtype``."""
        raise NotImplementedError
