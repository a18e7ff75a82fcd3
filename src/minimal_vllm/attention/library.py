"""Attention of whole new prompts with cuDNN's kernel, which is the fastest for them.

For a prompt with no cached prefix, paged attention is ordinary causal attention: every key that its
tokens attend to is computed in the same step, and the keys are contiguous. cuDNN's kernel comes
with PyTorch and has a higher throughput than ours.

The kernel takes a batch of prompts of the same length. For each new length and batch size it makes
a plan, which takes longer than the attention itself. Prompts are therefore padded to one of a few
lengths, at most an eighth above their own, and computed in batches whose sizes are powers of two.
Padding after a prompt doesn't change the prompt's results, because attention is causal.

A server meets every length for the first time. So our own kernel computes the first batches of each
shape, until the library's plan is worth its time (see ``PlanBudget``).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from minimal_vllm.device.properties import is_hopper_or_later

MIN_TOKENS = 1024
"""Minimum length of a prompt for cuDNN's kernel; for shorter prompts, ours is as fast."""
MAX_HEAD_DIM = 128
"""Maximum head dimension for cuDNN's kernel."""
SECONDS_TO_PLAN = 0.04
"""Time that cuDNN takes to plan its kernel for a new shape."""
FLOPS, OUR_FLOPS = 550e12, 370e12
"""Operations per second of cuDNN's kernel and of ours (measured on an H200)."""


@dataclass(frozen=True, slots=True)
class FreshPrompts:
    """New prompts that are computed as one batch."""

    rows: list[slice]
    """Rows of ``q``, ``k`` and ``v`` that belong to each prompt."""
    length: int
    """Length that each prompt is padded to, in tokens."""

    @property
    def are_side_by_side(self) -> bool:
        """Whether the prompts follow one another in ``q``, and need no padding."""
        first = self.rows[0].start
        starts = range(first, first + len(self.rows) * self.length, self.length)
        return self.rows == [slice(start, start + self.length) for start in starts]


class PlanBudget:
    """Decides from when on the library computes batches of some shape.

    Until then our own kernel computes them. Once that has lost as much time as a plan takes, the
    plan is made: more batches of this shape will probably follow. Even if none do, the shape has
    cost two plans at most. This is the break-even rule of the ski rental problem; source: Karlin et
    al., *Competitive snoopy caching*, 1988.

    Args:
        num_heads: number of query heads.
        head_dim: size of a head.
        num_layers: number of layers, which all use the same plan. None: each plan is made at once.
    """

    def __init__(self, num_heads: int, head_dim: int, num_layers: int | None) -> None:
        self._flops_per_pair = 4 * num_heads * head_dim * (num_layers or 0)
        self._seconds_to_plan = 0.0 if num_layers is None else SECONDS_TO_PLAN
        self._lost: dict[tuple[int, int], float] = defaultdict(float)

    def is_worth_a_plan(self, prompts: FreshPrompts) -> bool:
        """Return whether the library computes these prompts; if not, note what that costs."""
        shape = (len(prompts.rows), prompts.length)
        if self._lost[shape] >= self._seconds_to_plan:
            return True
        flops = self._flops_per_pair * len(prompts.rows) * prompts.length**2 / 2
        self._lost[shape] += flops / OUR_FLOPS - flops / FLOPS
        return False


def can_use_library(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether cuDNN's kernel is available and fast for queries of this kind."""
    return (
        device.type == "cuda"
        and is_hopper_or_later(device)
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim <= MAX_HEAD_DIM
        and head_dim % 8 == 0
    )


def group_by_length(prompts: Sequence[slice]) -> Iterator[FreshPrompts]:
    """Yield batches of prompts with the same padded length; batch sizes are powers of two."""
    groups: dict[int, list[slice]] = defaultdict(list)
    for rows in prompts:
        groups[padded_length(rows.stop - rows.start)].append(rows)
    for length, group in groups.items():
        while group:
            count = 1 << (len(group).bit_length() - 1)
            yield FreshPrompts(group[:count], length)
            del group[:count]


def padded_length(num_tokens: int) -> int:
    """Round a length up to one of the eight lengths between two powers of two."""
    step = 1 << max(num_tokens.bit_length() - 4, 0)
    return -(-num_tokens // step) * step


def fresh_attention(
    q: Tensor, k: Tensor, v: Tensor, prompts: FreshPrompts, scale: float, out: Tensor
) -> Tensor:
    """Compute causal attention within each prompt.

    Args:
        q: ``[T, H, D]``: queries of the step.
        k: ``[T, K, D]``: keys of the step.
        v: ``[T, K, D]``: values of the step.
        prompts: the prompts to compute.
        scale: factor of the scores.
        out: ``[T, H, D]``: memory that the prompts' rows are written to.

    Returns:
        ``out``. If the step has no other tokens, cuDNN's result is returned instead, to save a
        copy, and ``out`` is not written to.
    """
    queries, keys, values = (_stack(heads, prompts) for heads in (q, k, v))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        result = scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scale, enable_gqa=True
        )
    result = result.transpose(1, 2)
    if prompts.are_side_by_side and result.numel() == out.numel():
        return result.flatten(0, 1)
    for rows, heads in zip(prompts.rows, result, strict=True):
        out[rows] = heads[: rows.stop - rows.start]
    return out


def _stack(heads: Tensor, prompts: FreshPrompts) -> Tensor:
    """Return ``[T, heads, D]`` as ``[prompts, heads, length, D]``, padded with zeros."""
    shape = (len(prompts.rows), prompts.length, *heads.shape[1:])
    if prompts.are_side_by_side:
        first = prompts.rows[0].start
        stacked = heads[first : first + shape[0] * shape[1]].view(shape)
    else:
        stacked = heads.new_empty(shape)
        for padded, rows in zip(stacked, prompts.rows, strict=True):
            num_tokens = rows.stop - rows.start
            padded[:num_tokens] = heads[rows]
            padded[num_tokens:] = 0
    return stacked.transpose(1, 2)
