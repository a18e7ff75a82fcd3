"""A decoder on one sequence, with attention that needs no blocks."""

import pytest
import torch

from minimal_vllm.model import layers
from minimal_vllm.model.decoder import Decoder

TOKEN_IDS = torch.tensor([(17 * i * i + 5) % 256 for i in range(40)])


class DenseAttention:
    """Causal attention of one sequence over itself; its cache is a list of what came before."""

    slots = None

    def __call__(self, q, k, v, cache, options):
        scale, window = options.scale, options.window
        k, v = (torch.cat(parts) for parts in zip(*cache, strict=True))
        heads_per_kv_head = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(heads_per_kv_head, dim=1) for x in (k, v))
        key_positions = torch.arange(len(k))
        query_positions = key_positions[-len(q) :, None]
        seen = key_positions <= query_positions
        if window is not None:
            seen &= key_positions > query_positions - window
        scores = torch.einsum("qhd,khd->hqk", q, k).float() * scale
        if options.softcap is not None:
            scores = options.softcap * torch.tanh(scores / options.softcap)
        scores = scores.masked_fill(~seen, float("-inf"))
        if options.sinks is not None:  # a key without a value
            sinks = options.sinks.float()[:, None, None].expand(-1, len(q), 1)
            scores = torch.cat((scores, sinks), dim=-1)
        weights = scores.softmax(-1)[..., : len(k)].to(v.dtype)
        return torch.einsum("hqk,khd->qhd", weights, v)


@pytest.fixture(autouse=True)
def dense_cache(monkeypatch):
    """What comes before is kept in a list, not in blocks."""
    monkeypatch.setattr(layers, "write_to_cache", lambda k, v, cache, slots: cache.append((k, v)))


def compute_logits(model: Decoder, chunks: list[int]) -> torch.Tensor:
    """The logits after each of TOKEN_IDS, computed in steps of so many tokens."""
    caches = [[] for _ in model.layers]
    hidden = [
        model(token_ids, positions, caches, [DenseAttention()] * len(caches))
        for token_ids, positions in zip(
            TOKEN_IDS.split(chunks), torch.arange(len(TOKEN_IDS)).split(chunks), strict=True
        )
    ]
    return model.logits(torch.cat(hidden))
