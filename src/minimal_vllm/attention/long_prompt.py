"""Attention of a long prompt on a CPU, in pieces that PyTorch's own kernel computes.

Between its two matrix products, attention scales, masks and exponentiates each score. As separate
operations, these take most of the time. PyTorch's kernel does all of it for a few scores at a time,
while they are in the processor's cache (``scaled_dot_product_attention``). It needs one request's
keys in order, and computes the scores of all of them, even those that a token doesn't see. So the
request's pages are gathered, and each piece of the prompt gets only the keys up to its end::

                     keys →
    tokens 0–63      ██░             ░ masked: later keys of the same piece
    tokens 64–127    ████░
    tokens 128–191   ██████░

Aligned at its last token and last key, each piece has the same mask. Short prompts are faster in
tiles, many of which share an operation (see ``tiled``).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from minimal_vllm.cache.kv_cache import LayerCache

PIECE = 64
"""Maximum number of tokens per piece."""


@dataclass(frozen=True, slots=True)
class LongPrompt:
    """New tokens of one request, and the keys that they attend to."""

    first: int
    """Index of the request's first token in the batch."""
    end: int
    """Index after its last one."""
    pages: Tensor
    """``[K * blocks]`` int64: pages of the keys, head by head; see ``Round.pages``."""
    mask: Tensor
    """``[PIECE, n]`` float32, for the ``n`` keys up to the last token: 0 for keys that a token of
    the last piece attends to, and -inf for the others."""
    window: int | None
    """Number of tokens that each token attends to. None: all tokens up to itself."""

    def attend(self, q: Tensor, cache: LayerCache, scale: float, out: Tensor) -> None:
        """Compute attention of the request's tokens.

        Args:
            q: ``[T, H, D]``: queries of the whole batch.
            cache: keys and values of the layer.
            scale: factor of the scores.
            out: ``[T, H, D]``; the rows of the request's tokens are overwritten.
        """
        keys, values = (self._gather(memory) for memory in cache)
        for start in range(self.first, self.end, PIECE):
            end = min(start + PIECE, self.end)
            last_key = self.mask.shape[1] - (self.end - end)
            first_key = max(last_key - (end - start) - (self.window or last_key) + 1, 0)
            attended = scaled_dot_product_attention(
                q[start:end].float().transpose(0, 1)[None],
                keys[:, :, first_key:last_key],
                values[:, :, first_key:last_key],
                attn_mask=self.mask[start - end :, first_key - last_key :],
                scale=scale,
                enable_gqa=True,
            )
            out[start:end] = attended[0].transpose(0, 1)

    def _gather(self, memory: Tensor) -> Tensor:
        """Return a copy of the request's keys or values, ``[1, K, keys, D]`` float32."""
        _, num_kv_heads, block_size, head_dim = memory.shape
        pages = memory.view(-1, block_size * head_dim)
        return pages.index_select(0, self.pages).float().view(1, num_kv_heads, -1, head_dim)


def piece_mask(num_keys: int, window: int | None) -> Tensor:
    """Return ``LongPrompt.mask``."""
    token = torch.arange(PIECE)[:, None] - PIECE
    distance = token - (torch.arange(num_keys) - num_keys)
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
