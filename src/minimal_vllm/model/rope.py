"""Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864).

A head's D dimensions form D / 2 pairs (i, i + D / 2). At position p, pair i is turned by the angle
``p * frequency[i]``, so that the product of a query and a key depends on their distance only.
"""

import torch
from torch import Tensor

from minimal_vllm.model.rope_config import RopeConfig
from minimal_vllm.model.rope_frequencies import attention_factor, rope_frequencies


def rope_table(config: RopeConfig, head_dim: int, num_positions: int) -> Tensor:
    """The cosines and sines of all positions.

    Returns:
        ``[num_positions, head_dim]`` in float32: of each position the D / 2 cosines, then the
        D / 2 sines, both times YaRN's attention factor if that is in use.
    """
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = torch.outer(positions, rope_frequencies(config, head_dim))
    return torch.cat((angles.cos(), angles.sin()), dim=1) * attention_factor(config)


def rotation(table: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Look up what ``rotate`` needs for the tokens of a step; all layers share it.

    Args:
        table: from ``rope_table``.
        positions: ``[T]`` int64, each below the table's ``num_positions``.
        dtype: the model's.

    Returns:
        Cosines and sines, each ``[T, 1, D]``; the first D / 2 sines are negated.
    """
    cos, sin = table[positions].to(dtype).unsqueeze(1).chunk(2, dim=-1)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (a, b) of every head to (a cos - b sin, b cos + a sin).

    Args:
        heads: queries or keys, ``[T, heads, D]``.
        cos: from ``rotation``.
        sin: from ``rotation``.
    """
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1)  # (b, a)
    return torch.addcmul(heads * cos, swapped, sin)
