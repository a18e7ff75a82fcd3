"""Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864).

The first R of a head's dimensions, in most models all, form R / 2 pairs: (i, i + R / 2), or in some
models (2 i, 2 i + 1). At position p, pair i is rotated by the angle ``p * frequency[i]``, so that
the product of a query and a key depends only on their distance.

Scaled frequencies extend a model to longer contexts than it was trained for: Peng et al., *YaRN*,
2023, https://arxiv.org/abs/2309.00071; Llama 3.1's reference code.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from minimal_vllm.model.rope_config import (
    FrequencyFactors,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    YarnScaling,
)


def rope_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Return each pair's rotation in radians per position: ``[R / 2]`` float32."""
    rotary_dim = config.rotary_dim(head_dim)
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    frequencies = 1.0 / config.theta**exponents
    match config.scaling:
        case None:
            return frequencies
        case Llama3Scaling() as llama3:
            return _llama3(frequencies, llama3)
        case YarnScaling() as yarn:
            return _yarn(frequencies, yarn, config.theta)
        case FrequencyFactors(factors=factors) | LongRopeScaling(short_factor=factors):
            return frequencies / torch.tensor(factors)
        case linear:
            return frequencies / linear.factor


def attention_factor(config: RopeConfig) -> float:
    """Return the factor by which YaRN and LongRoPE multiply cosines and sines; else 1."""
    yarn = config.scaling
    if isinstance(yarn, LongRopeScaling):
        return _longrope_factor(yarn)
    if not isinstance(yarn, YarnScaling):
        return 1.0
    if yarn.attention_factor is not None:
        return yarn.attention_factor
    if yarn.mscale and yarn.mscale_all_dim:
        return _mscale(yarn.factor, yarn.mscale) / _mscale(yarn.factor, yarn.mscale_all_dim)
    return _mscale(yarn.factor, 1.0)


def _longrope_factor(scaling: LongRopeScaling) -> float:
    """Return the attention factor; its default is the paper's ``sqrt(1 + ln(s) / ln(L))``."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    original = scaling.original_max_position_embeddings
    return math.sqrt(1 + math.log(scaling.factor) / math.log(original))


def _mscale(factor: float, weight: float) -> float:
    """Return ``1 + 0.1 * weight * ln(factor)``: the square root of the paper's equation 22."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Divide the low frequencies by the factor, keep the high ones, and blend in between.

    A frequency is low or high depending on how many full rotations its pair makes within the
    trained length (``apply_scaling`` in the reference code).
    """
    low = scaling.low_freq_factor
    high = scaling.high_freq_factor
    rotations = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = ((rotations - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _yarn(frequencies: Tensor, scaling: YarnScaling, theta: float) -> Tensor:
    """Divide the low frequencies by the factor, keep the high ones, and blend in between.

    Unlike Llama 3, the blend is linear in the pair's index (section 3.2 of the paper).
    """
    num_pairs = len(frequencies)

    def pair_with(rotations: float) -> float:
        """Return the fractional index of the pair that makes this number of rotations."""
        wavelength = scaling.original_max_position_embeddings / (2 * math.pi * rotations)
        return num_pairs * math.log(wavelength) / math.log(theta)

    first, last = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * num_pairs - 1)
    pairs = torch.arange(num_pairs, dtype=torch.float32)
    scaled = ((pairs - first) / (last - first or 0.001)).clamp(0, 1)
    return frequencies / scaling.factor * scaled + frequencies * (1 - scaled)


def rope_table(config: RopeConfig, head_dim: int, num_positions: int) -> Tensor:
    """Return the cosines and sines of all positions.

    Returns:
        ``[num_positions, R]`` in float32: for each position R / 2 cosines, then R / 2 sines, both
        multiplied by the scaling's attention factor.
    """
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = torch.outer(positions, rope_frequencies(config, head_dim))
    return torch.cat((angles.cos(), angles.sin()), dim=1) * attention_factor(config)


@dataclass(frozen=True)
class Rotation:
    """Rotation of a step's tokens, which all layers share."""

    config: RopeConfig
    table: Tensor
    """``[num_positions, R]``, from ``rope_table``."""
    positions: Tensor
    """``[T]`` int64: positions of the tokens, each below ``num_positions``."""
    dtype: torch.dtype
    """Dtype of the model."""

    @cached_property
    def cos_sin(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of each rotated dimension, ``[T, 1, R]``.

        A pair's first sine is negated.

        They are looked up once per step. A kernel may look them up in ``table`` itself.
        """
        cos, sin = self.table[self.positions].to(self.dtype).unsqueeze(1).chunk(2, dim=-1)
        if self.config.pairs == "neighbors":
            return cos.repeat_interleave(2, dim=-1), torch.stack((-sin, sin), dim=-1).flatten(-2)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    @cached_property
    def matrices(self) -> Tensor:
        """Matrices that rotate R dimensions of each token, ``[T, R, R]``.

        For a few tokens, one product takes less time than the operations of ``rotate``.
        """
        num_tokens, size = len(self.positions), self.table.shape[1]
        units = torch.eye(size, dtype=self.dtype, device=self.table.device)
        return rotate(units.expand(num_tokens, -1, -1), self)

    @cached_property
    def query_factor(self) -> Tensor | None:
        """Factor of the rotated queries, ``[T, 1, 1]``; see ``QueryGrowth``. None: 1."""
        growth = self.config.query_growth
        if growth is None:
            return None
        times = torch.floor(self.positions / growth.original_length)
        return (1 + growth.beta * torch.log1p(times)).to(self.dtype)[:, None, None]


class Rotary:
    """Rotary embedding of a model, with a precomputed table of cosines and sines.

    Args:
        config: frequencies and scaling.
        head_dim: D, the length of a head.
        num_positions: number of positions to precompute.
        device: device of the table.
    """

    def __init__(
        self, config: RopeConfig, head_dim: int, num_positions: int, device: torch.device
    ) -> None:
        self.config = config
        self.table = rope_table(config, head_dim, num_positions).to(device)

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Return the rotation of a step's tokens.

        Args:
            positions: ``[T]`` int64, each below ``num_positions``.
            dtype: dtype of the model.
        """
        return Rotation(self.config, self.table, positions, dtype)


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the pairs (a, b) of every head to (a cos - b sin, b cos + a sin).

    Args:
        heads: queries or keys, ``[T, heads, D]``. The dimensions from R on are not rotated.
        rotation: rotation of the step's tokens.

    Returns:
        ``[T, heads, D]``.
    """
    cos, sin = rotation.cos_sin
    size = cos.shape[-1]
    rotated = heads[..., :size]
    rotated = torch.addcmul(rotated * cos, swap_pairs(rotated, rotation.config), sin)
    return torch.cat((rotated, heads[..., size:]), dim=-1) if size < heads.shape[-1] else rotated


def swap_pairs(heads: Tensor, config: RopeConfig) -> Tensor:
    """Swap the two dimensions of every pair: (a, b) becomes (b, a).

    Args:
        heads: ``[..., R]``: dimensions that are rotated.
        config: says which dimensions are pairs.
    """
    if config.pairs == "neighbors":
        return heads.reshape(*heads.shape[:-1], -1, 2).flip(-1).flatten(-2)
    return heads.roll(heads.shape[-1] // 2, dims=-1)
