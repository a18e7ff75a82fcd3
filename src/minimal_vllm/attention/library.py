"""Attention of whole new prompts by the library's kernel, which is the fastest there is.

For a prompt that nothing of is cached, paged attention is ordinary causal attention: every key that
its tokens see is computed in the same step, and is at hand in one piece, before the blocks. cuDNN's
kernel comes with PyTorch, and does more work in the same time than ours.

It wants prompts of one length, side by side, and makes a plan for each new length and number of
them, which takes longer than to compute it. So prompts are padded to one of few lengths, at most an
eighth above their own, and go there in twos, fours and eights. What stands behind a prompt's last
token changes nothing before it: attention is causal.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from minimal_vllm.device.launch import is_hopper_or_later

LEAST_TOKENS = 1024
"""Below, our own kernel is as fast."""
MOST_DIMS = 128


@dataclass(frozen=True, slots=True)
class FreshPrompts:
    """New prompts that are computed at once."""

    rows: list[slice]
    """For each, the rows of ``q`` that are its tokens."""
    length: int
    """What each is padded to."""

    @property
    def are_side_by_side(self) -> bool:
        """Whether no padding is needed."""
        first = self.rows[0].start
        places = range(first, first + len(self.rows) * self.length, self.length)
        return self.rows == [slice(place, place + self.length) for place in places]


def is_for_library(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether cuDNN's kernel is there, and fast."""
    return (
        device.type == "cuda"
        and is_hopper_or_later(device)
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim <= MOST_DIMS
        and head_dim % 8 == 0
    )


def group_by_length(prompts: Sequence[slice]) -> Iterator[FreshPrompts]:
    """Prompts that are padded to the same length, in groups of a power of two."""
    groups: dict[int, list[slice]] = defaultdict(list)
    for rows in prompts:
        groups[padded_length(rows.stop - rows.start)].append(rows)
    for length, group in groups.items():
        while group:
            count = 1 << (len(group).bit_length() - 1)
            yield FreshPrompts(group[:count], length)
            del group[:count]


def padded_length(num_tokens: int) -> int:
    """The next of eight lengths between each power of two and the next."""
    step = 1 << max(num_tokens.bit_length() - 4, 0)
    return -(-num_tokens // step) * step


def fresh_attention(
    q: Tensor, k: Tensor, v: Tensor, prompts: FreshPrompts, scale: float, out: Tensor
) -> Tensor:
    """Attend causally with the tokens of each prompt over themselves.

    Args:
        q: ``[T, H, D]``.
        k: ``[T, K, D]``.
        v: ``[T, K, D]``.
        prompts: which of the tokens.
        scale: what the scores are multiplied by.
        out: ``[T, H, D]``, of which the prompts' rows are written, unless they are all there is.

    Returns:
        ``out``, or, if the prompts are all there is, the library's result, to save a copy.
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
    """``[T, heads, D]`` -> ``[prompts, heads, length, D]``, zeros where there are no tokens."""
    shape = (len(prompts.rows), prompts.length, *heads.shape[1:])
    if prompts.are_side_by_side:
        first = prompts.rows[0].start
        stacked = heads[first : first + shape[0] * shape[1]].view(shape)
    else:
        stacked = heads.new_empty(shape)
        for place, rows in zip(stacked, prompts.rows, strict=True):
            num_tokens = rows.stop - rows.start
            place[:num_tokens] = heads[rows]
            place[num_tokens:] = 0
    return stacked.transpose(1, 2)
