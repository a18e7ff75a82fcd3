"""Attention of whole new prompts by cuDNN's kernel, which is the fastest one for them.

For a prompt with no cached prefix, paged attention is ordinary causal attention: every key that its
tokens see is computed in the same step, and is at hand in one piece. cuDNN's kernel comes with
PyTorch, and computes more in the same time than ours.

The kernel takes prompts of one length, side by side. It makes a plan for each new length and number
of prompts, which takes longer than to compute them. So prompts are padded to one of few lengths, at
most an eighth above their own, and are computed in groups of two, four and eight. Padding behind a
prompt changes nothing before it, since attention is causal.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from minimal_vllm.device.properties import is_hopper_or_later

LEAST_TOKENS = 1024
"""Minimum length of a prompt; for shorter ones our kernel is as fast."""
MOST_DIMS = 128


@dataclass(frozen=True, slots=True)
class FreshPrompts:
    """New prompts that are computed together."""

    rows: list[slice]
    """For each prompt, the rows of ``q`` that are its tokens."""
    length: int
    """Length that each prompt is padded to."""

    @property
    def are_side_by_side(self) -> bool:
        """Whether the prompts lie one behind another without padding."""
        first = self.rows[0].start
        starts = range(first, first + len(self.rows) * self.length, self.length)
        return self.rows == [slice(start, start + self.length) for start in starts]


def can_use_library(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether cuDNN's kernel is available, and fast, for such queries."""
    return (
        device.type == "cuda"
        and is_hopper_or_later(device)
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim <= MOST_DIMS
        and head_dim % 8 == 0
    )


def group_by_length(prompts: Sequence[slice]) -> Iterator[FreshPrompts]:
    """Yield groups of prompts of one padded length; the size of a group is a power of two."""
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
    """Attend causally, with the tokens of each prompt, over that prompt.

    Args:
        q: ``[T, H, D]``.
        k: ``[T, K, D]``.
        v: ``[T, K, D]``.
        prompts: which of the tokens.
        scale: factor of the scores.
        out: ``[T, H, D]``; the rows of the prompts are written, unless the prompts are all tokens.

    Returns:
        ``out``; or, to save a copy, the library's result if the prompts are all tokens.
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
