"""Paged attention in its simplest form: the reference that all other implementations must match."""

import torch
from torch import Tensor

from minimal_vllm.attention.interface import AttentionOptions
from minimal_vllm.attention.paged import PagedStep
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.step.batch import Batch


class ReferenceStep(PagedStep):
    """Attention that loops over the requests, gathers each one's pages, and computes in float32."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,  # noqa: ARG002 - read from the cache
        v: Tensor,  # noqa: ARG002
        cache: LayerCache,
        options: AttentionOptions,
    ) -> Tensor:
        """Compute attention over the cache; see ``StepAttention``."""
        out = torch.empty_like(q)
        starts = self.query_starts.tolist()
        window = options.window
        rules = options.scale, window, options.softcap, options.sinks
        for row, seq_len in enumerate(self.seq_lens.tolist()):
            queries = slice(starts[row], starts[row + 1])
            # Blocks that the window has passed may be another sequence's.
            first = 0 if window is None else max(0, seq_len - len(q[queries]) - window + 1)
            keys = gather_pages(cache.key, self.block_tables[row], seq_len)
            values = gather_pages(cache.value, self.block_tables[row], seq_len)
            out[queries] = attend(q[queries], keys[first:], values[first:], *rules)
        return out


class ReferenceAttention:
    """Factory for the reference attention of each step; see ``Attention``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def plan(self, batch: Batch) -> ReferenceStep:
        """Move the batch to the device, and return the step's attention."""
        return ReferenceStep.from_batch(batch, self._device)


def gather_pages(layer: Tensor, block_table: Tensor, seq_len: int) -> Tensor:
    """Gather the keys, or the values, of one sequence from its blocks.

    Args:
        layer: ``[B, K, S, D]``: keys or values of a layer, in ``B`` blocks of ``S`` tokens.
        block_table: the sequence's blocks, in order.
        seq_len: number of tokens in the sequence.

    Returns:
        ``[seq_len, K, D]``.
    """
    _, num_kv_heads, block_size, head_dim = layer.shape
    num_blocks = -(-seq_len // block_size)
    pages = layer[block_table[:num_blocks].long()]
    return pages.transpose(1, 2).reshape(-1, num_kv_heads, head_dim)[:seq_len]


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute causal attention, ``softmax(q k^T * scale) v``, for a sequence's last tokens.

    Args:
        q: ``[n, H, D]``: queries of the last ``n`` of the sequence's ``m`` tokens.
        keys: ``[m, K, D]``; each KV head serves ``H / K`` query heads (grouped-query attention).
        values: ``[m, K, D]``.
        scale: factor of the scores.
        window: number of tokens that each token attends to, itself included. None: all tokens up to
            itself.
        softcap: bound of the scores; see ``AttentionOptions``.
        sinks: ``[H]``: scores without values; see ``AttentionOptions``.

    Returns:
        ``[n, H, D]`` in ``q``'s dtype; computed in float32.
    """
    n, num_heads, _ = q.shape
    m, num_kv_heads, _ = keys.shape
    keys = keys.float().repeat_interleave(num_heads // num_kv_heads, dim=1)
    values = values.float().repeat_interleave(num_heads // num_kv_heads, dim=1)
    scores = torch.einsum("nhd,mhd->hnm", q.float(), keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(m - n, m, device=q.device)[:, None] - torch.arange(m, device=q.device)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.float()[:, None, None].expand(-1, n, -1)), dim=-1)
    probabilities = scores.softmax(dim=-1)[:, :, :m]
    return torch.einsum("hnm,mhd->nhd", probabilities, values).to(q.dtype)
