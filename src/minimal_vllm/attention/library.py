"""Attention of whole new prompts by the library's kernel, which is the fastest there is.

For a prompt that nothing of is cached, paged attention is ordinary causal attention: every key that
its tokens see is computed in the same step, and is at hand in one piece, before the blocks. cuDNN's
kernel comes with PyTorch and does 1.3 times the work of ours in the same time.

cuDNN makes a plan for each new length, which takes longer than to compute it. So it gets multiples
of ``PORTION`` tokens, of which there are few; our kernel does the rest of the prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from minimal_vllm.launch import is_hopper_or_later

PORTION = 1024
"""Tokens: below, our own kernel is as fast."""
MOST_DIMS = 128


@dataclass(frozen=True, slots=True)
class FreshPrompt:
    """The beginning of a prompt, all of it new."""

    token: int
    """The row of ``q`` that is its first token."""
    num_tokens: int
    """A multiple of ``PORTION``."""


def is_for_library(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether cuDNN's kernel is there, and fast."""
    return (
        device.type == "cuda"
        and is_hopper_or_later(device)
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim <= MOST_DIMS
        and head_dim % 8 == 0
    )


def fresh_attention(
    q: Tensor, k: Tensor, v: Tensor, prompt: FreshPrompt, scale: float, out: Tensor
) -> None:
    """Attend causally with the tokens of one prompt over themselves.

    Args:
        q: ``[T, H, D]``.
        k: ``[T, K, D]``.
        v: ``[T, K, D]``.
        prompt: which of the tokens.
        scale: what the scores are multiplied by.
        out: ``[T, H, D]``, of which the prompt's rows are written.
    """
    rows = slice(prompt.token, prompt.token + prompt.num_tokens)
    queries, keys, values = (heads[rows].transpose(0, 1).unsqueeze(0) for heads in (q, k, v))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        result = scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scale, enable_gqa=True
        )
    out[rows] = result[0].transpose(0, 1)
