"""Computing attention in tiles and rounds, which ``tiled`` has cut a step into."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from minimal_vllm.attention.interface import AttentionOptions
from minimal_vllm.attention.long_prompt import LongPrompt
from minimal_vllm.attention.online_softmax import OnlineSoftmax
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.device.threads import OneThread, threads_spin


@dataclass(frozen=True, slots=True)
class Round:
    """Keys that a slice of the tiles attends to in one round.

    For example, with K = 2 key-value heads and blocks of S = 4 tokens, a round of two blocks for
    one tile whose request has the blocks ``[7, 2]`` and 6 tokens::

        pages           14 4 15 5        rows ``block * K + head``: head 0, then head 1
        key_positions   0 1 2 3 4 5 6 7
        unwritten       6 7 14 15        of the gathered keys of both heads: positions 6 and 7
    """

    first_tile: int
    """Index of the first tile of the slice."""
    end_tile: int
    """Index after the last tile of the slice."""
    pages: Tensor
    """``[n * K * blocks]`` int64, for ``n`` tiles: rows ``block * K + head`` of a layer's cache
    viewed as ``[B * K, S * D]``. Gathered in this order, they are ``[n, K, keys, D]``."""
    key_positions: Tensor
    """``[n, keys]`` int32: position of each gathered key in its request."""
    unwritten: Tensor
    """Rows of the gathered ``[n * K * keys, D]`` after the end of a request, int64. They may hold
    anything, even NaN."""


@dataclass(frozen=True, slots=True)
class TileGroup:
    """All tiles of one size, and their rounds."""

    tokens: Tensor
    """``[tiles, tile size]`` int64: token indices of each tile; a short tile repeats its last."""
    positions: Tensor
    """``[tiles, tile size]`` int32: positions of the tokens in their requests."""
    rounds: list[Round]
    biases: list[Tensor] | None
    """For each round ``[n, 1, 1, keys]`` float32: 0 for keys that a tile's token attends to, and
    -inf for the others. None: tiles have several tokens or rounds."""


class StepParts(NamedTuple):
    """The parts that a step's attention is computed in."""

    groups: list[TileGroup]
    prompts: list[LongPrompt]


class ContextGroup(NamedTuple):
    """All keys that each of ``t`` tokens attends to, in one gather.

    Contexts of similar length are padded to the longest: a shorter one repeats its last key.
    """

    num_tokens: int
    rows: Tensor
    """``[t * K * n]`` int64: rows of the keys, token by token and head by head; see
    ``TiledStep.cache_rows``."""
    scratch: Tensor
    """``[2, t * K * n, D]`` float32: memory for a layer's keys and values in these rows."""
    bias: Tensor | None
    """``[t, 1, 1, n]`` float32: -inf for keys that are repeated, and 0 for the others. None: there
    is only one token."""


class TokenContexts(NamedTuple):
    """All keys that each of a few tokens attends to."""

    order: Tensor
    """``[T]`` int64: indices of the tokens, longest context first; the same for all windows."""
    new_rows: Tensor
    """``[T * K]`` int64: rows of the ordered tokens' own keys; see ``TiledStep.cache_rows``."""
    groups: list[ContextGroup]
    """The ordered tokens, cut into groups."""


Planned = TypeVar("Planned")


class ByWindow(dict[int | None, Planned]):
    """Plans by the layers' sliding window, made when the first layer with that window asks.

    Args:
        plan: plans a step for a window.
    """

    def __init__(self, plan: Callable[[int | None], Planned]) -> None:
        super().__init__()
        self._plan = plan

    def __missing__(self, window: int | None) -> Planned:
        self[window] = self._plan(window)
        return self[window]


class TiledStep:
    """A step's attention, cut into tiles; see ``StepAttention``.

    Args:
        slots: see ``StepAttention``.
        parts: what to compute, by the layers' sliding window.
        tiles: likewise, without long prompts, for scores with a softcap or sinks.
        contexts: see ``contexts``.
        scratch: two buffers, for the keys and for the values of a round.
        num_kv_heads: K, the number of KV heads.
        block_size: S, the number of tokens per KV block.
    """

    def __init__(
        self,
        slots: Tensor,
        parts: ByWindow[StepParts],
        tiles: ByWindow[StepParts],
        contexts: ByWindow[TokenContexts | None],
        scratch: Tensor,
        num_kv_heads: int,
        block_size: int,
    ) -> None:
        self.slots = slots
        self._parts = parts
        self._tiles = tiles
        self.contexts = contexts
        """Contexts of all tokens, by the layers' window. None: they should be read in rounds,
        because they have too many keys."""
        self._scratch = scratch
        self._num_kv_heads = num_kv_heads
        self._block_size = block_size
        self._sleeps = not threads_spin()

    @cached_property
    def cache_rows(self) -> Tensor:
        """Row of each new key in a layer's cache viewed as ``[B * K * S, D]``: ``[T * K]`` int64.

        All layers write to the same rows.
        """
        block, offset = self.slots // self._block_size, self.slots % self._block_size
        heads = torch.arange(self._num_kv_heads, device=self.slots.device)
        pages = block[:, None] * self._num_kv_heads + heads
        return (pages * self._block_size + offset[:, None]).view(-1)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,  # noqa: ARG002 - read from the cache
        v: Tensor,  # noqa: ARG002
        cache: LayerCache,
        options: AttentionOptions,
    ) -> Tensor:
        """Compute attention over the cache; see ``StepAttention``."""
        is_plain = options.softcap is None and options.sinks is None
        groups, prompts = (self._parts if is_plain else self._tiles)[options.window]
        if len(q) == 1:
            with OneThread(self._sleeps):
                return self._attend(q[None], cache, groups[0], options)
        out = torch.empty_like(q)
        for group in groups:
            tokens = group.tokens.view(-1)
            queries = q.index_select(0, tokens).view(*group.tokens.shape, *q.shape[1:])
            # A round of single tokens is so short that it isn't worth waking sleeping threads.
            with OneThread(self._sleeps and group.tokens.shape[1] == 1):
                attended = self._attend(queries, cache, group, options)
            # A short tile's repeated tokens write the same result to the same row again.
            out.index_copy_(0, tokens, attended)
        for prompt in prompts:
            prompt.attend(q, cache, options.scale, out)
        return out

    def _attend(
        self, q: Tensor, cache: LayerCache, group: TileGroup, options: AttentionOptions
    ) -> Tensor:
        """Compute attention of a group's queries, ``[tiles, size, H, D]``.

        Returns:
            ``[tiles * size, H, D]``.
        """
        if group.biases and options.softcap is None and options.sinks is None:
            return self._attend_fused(q, cache, group.rounds, group.biases, options.scale)
        tiles, size, num_heads, head_dim = q.shape
        split_heads = (tiles, size, self._num_kv_heads, -1, head_dim)
        # [tiles, K, rows, D]: a KV head's rows are the tile's tokens times the query heads that it
        # serves. So one read of a key serves all query heads that share it.
        rows = size * num_heads // self._num_kv_heads
        queries = (q.float() * options.scale).view(split_heads).transpose(1, 2)
        queries = queries.reshape(tiles, -1, rows, head_dim)
        is_simple = len(group.rounds) == 1 and options.sinks is None
        attend = self._in_one_round if is_simple else self._in_rounds
        merged = attend(queries, cache, group, options)
        by_token = merged.view(tiles, self._num_kv_heads, size, -1, head_dim).transpose(1, 2)
        return by_token.reshape(-1, num_heads, head_dim).to(q.dtype)

    def _attend_fused(
        self,
        q: Tensor,
        cache: LayerCache,
        rounds: list[Round],
        biases: list[Tensor],
        scale: float,
    ) -> Tensor:
        """Compute attention of tiles of one token, ``[tiles, 1, H, D]``, by PyTorch's own kernel.

        Its "queries" are the query heads that share a KV head.

        Returns:
            ``[tiles, H, D]``.
        """
        tiles, _, num_heads, head_dim = q.shape
        queries = q.float().reshape(tiles, self._num_kv_heads, -1, head_dim)
        num_rows = queries.shape[2]
        queries = with_fast_rows(queries)
        parts = []
        for part, bias in zip(rounds, biases, strict=True):
            keys, values = self._gather(cache, part)
            chosen = queries[part.first_tile : part.end_tile]
            parts.append(
                scaled_dot_product_attention(chosen, keys, values, attn_mask=bias, scale=scale)
            )
        merged = parts[0] if len(parts) == 1 else torch.cat(parts)
        return merged[:, :, :num_rows].reshape(tiles, num_heads, head_dim).to(q.dtype)

    def _in_one_round(
        self, queries: Tensor, cache: LayerCache, group: TileGroup, options: AttentionOptions
    ) -> Tensor:
        """Compute attention of tiles that see their whole contexts in one round, without sinks.

        Args:
            queries: ``[tiles, K, rows, D]`` float32: scaled queries.
            cache: keys and values of the layer.
            group: the tiles, and their only round.
            options: see ``StepAttention``.

        Returns:
            ``[tiles, K, rows, D]``.
        """
        (part,) = group.rounds
        keys, values = self._gather(cache, part)
        return _scores(queries, keys, group.positions, part, options).softmax(-1) @ values

    def _in_rounds(
        self, queries: Tensor, cache: LayerCache, group: TileGroup, options: AttentionOptions
    ) -> Tensor:
        """Compute attention of tiles in several rounds; see ``_in_one_round``."""
        tiles, size = group.tokens.shape
        merged = OnlineSoftmax(queries, self._sinks(options, tiles, size))
        for part in group.rounds:
            chosen = slice(part.first_tile, part.end_tile)
            keys, values = self._gather(cache, part)
            scores = _scores(queries[chosen], keys, group.positions[chosen], part, options)
            merged.add(chosen, scores, values)
        return merged.result()

    def _sinks(self, options: AttentionOptions, tiles: int, size: int) -> Tensor | None:
        """Return the sink of each row of each tile, ``[tiles, K, rows, 1]``, or None."""
        if options.sinks is None:
            return None
        per_token = options.sinks.float().view(self._num_kv_heads, 1, -1)  # [K, 1, H / K]
        rows = per_token.expand(-1, size, -1).reshape(self._num_kv_heads, -1, 1)
        return rows.repeat(tiles, 1, 1, 1)

    def _gather(self, cache: LayerCache, part: Round) -> tuple[Tensor, Tensor]:
        """Copy a round's pages to the scratch buffers.

        Returns:
            Keys and values, each ``[n, K, keys, D]``.
        """
        _, num_kv_heads, block_size, head_dim = cache.key.shape
        scratch = self._scratch[:, : len(part.pages)]
        for layer, target in zip(cache, scratch, strict=True):
            pages = layer.view(-1, block_size * head_dim)
            if layer.dtype == torch.float32:
                torch.index_select(pages, 0, part.pages, out=target)
            else:
                target.copy_(pages.index_select(0, part.pages))
        if len(part.unwritten):
            scratch.view(2, -1, head_dim).index_fill_(1, part.unwritten, 0)
        keys, values = scratch.view(2, len(part.key_positions), num_kv_heads, -1, head_dim)
        return keys, values


def with_fast_rows(queries: Tensor) -> Tensor:
    """Append a row of zeros to 3, 7, … rows, since products of 4 rows take less time than of 3.

    Args:
        queries: ``[..., rows, D]``.
    """
    return pad(queries, (0, 0, 0, 1)) if queries.shape[-2] % 4 == 3 else queries


def _scores(
    queries: Tensor, keys: Tensor, positions: Tensor, part: Round, options: AttentionOptions
) -> Tensor:
    """Return the scores of a round's keys, -inf for keys that a token doesn't attend to.

    Args:
        queries: ``[n, K, rows, D]``: scaled queries.
        keys: ``[n, K, keys, D]``.
        positions: ``[n, tile size]``: positions of the tokens.
        part: the round.
        options: see ``StepAttention``.

    Returns:
        ``[n, K, rows, keys]``.
    """
    scores = queries @ keys.transpose(-1, -2)
    if options.softcap is not None:
        scores.div_(options.softcap).tanh_().mul_(options.softcap)
    hidden = hidden_keys(positions, part.key_positions, options.window)
    by_token = scores.view(*scores.shape[:2], positions.shape[1], -1, scores.shape[-1])
    by_token.masked_fill_(hidden[:, None, :, None, :], -torch.inf)
    return scores


def hidden_keys(positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """Return a mask of the keys that a token doesn't attend to: ``[n, tile size, keys]`` bool.

    Args:
        positions: ``[n, tile size]``: positions of the tokens.
        key_positions: ``[n, keys]``: positions of the keys.
        window: see ``StepAttention``.
    """
    hidden = key_positions[:, None, :] > positions[:, :, None]
    if window is not None:
        hidden |= key_positions[:, None, :] <= positions[:, :, None] - window
    return hidden
