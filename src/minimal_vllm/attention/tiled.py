"""Paged attention as a few batched tensor operations: the fast path on CPUs.

The algorithm is that of a GPU kernel, written in PyTorch. Queries are cut into *tiles*: a few
tokens of one request's prompt, or the one token of a decoding request. All tiles walk through their
contexts together, in *rounds* of a fixed number of keys. A tile that has seen its whole context
drops out::

                     keys →   round 0     round 1     round 2
    A, decoding, context 300  ██████████  ██████████  ████░░░░░░     ░ padding, masked
    B, decoding, context 190  ██████████  ███████░░░
    C, tokens 32–63 of 80     ██████░░░░
    C, tokens 0–31 of 80      ███░░░░░░░

Batched matrix products compute a whole round, regardless of the requests' lengths. A tile is padded
by at most one round, not up to the longest request of the batch. Tiles are sorted by the length of
their contexts, longest first, so that the tiles of a round are a slice. Several rounds are merged
with the online softmax (see ``online_softmax``); a few short contexts take only one.

A round's pages are gathered into a scratch buffer small enough to stay in the processor's cache, so
that keys and values are read from RAM only once. A new buffer for all pages of a batch would be
written to RAM and read back, and the operating system would map it anew each time, which takes
several times as long as the arithmetic.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.attention.interface import AttentionOptions
from minimal_vllm.attention.online_softmax import OnlineSoftmax
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.step.batch import Batch, IntArray, enumerate_runs

PROMPT_TILE = 32
"""Maximum number of tokens per tile of a prompt: enough rows for an efficient matrix product."""
LEAST_ROUND = 128
"""Minimum number of keys per round: enough columns for an efficient matrix product."""
SCRATCH_BYTES = {"cpu": 2 << 20, "cuda": 1 << 28}
"""Bytes of the scratch buffer for a round's keys, and of the one for its values. On a CPU they fit
into its cache. On a GPU they are large, because each operation costs a kernel launch."""


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


@dataclass(frozen=True, slots=True)
class Tiles:
    """Blocks that each tile of a group attends to; tiles with the longest contexts come first."""

    request: IntArray
    """Index of each tile's request in the batch."""
    first_block: IntArray
    """Index of the first block in the request's block table."""
    num_blocks: IntArray
    """Number of blocks."""


class GroupsByWindow(dict[int | None, list[TileGroup]]):
    """Tiles by the layers' sliding window, cut when the first layer with that window asks for them.

    Args:
        cut: cuts a step into tiles for a window.
    """

    def __init__(self, cut: Callable[[int | None], Iterable[TileGroup]]) -> None:
        super().__init__()
        self._cut = cut

    def __missing__(self, window: int | None) -> list[TileGroup]:
        self[window] = list(self._cut(window))
        return self[window]


class TiledStep:
    """A step's attention, cut into tiles; see ``StepAttention``.

    Args:
        slots: see ``StepAttention``.
        groups: tiles to compute, by the layers' sliding window.
        scratch: two buffers, for the keys and for the values of a round.
        num_kv_heads: K, the number of KV heads.
    """

    def __init__(
        self,
        slots: Tensor,
        groups: GroupsByWindow,
        scratch: Tensor,
        num_kv_heads: int,
    ) -> None:
        self.slots = slots
        self._groups = groups
        self._scratch = scratch
        self._num_kv_heads = num_kv_heads

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
        for group in self._groups[options.window]:
            tokens = group.tokens.view(-1)
            queries = q.index_select(0, tokens).view(*group.tokens.shape, *q.shape[1:])
            # A short tile's repeated tokens write the same result to the same row again.
            out.index_copy_(0, tokens, self._attend(queries, cache, group, options))
        return out

    def _attend(
        self, q: Tensor, cache: LayerCache, group: TileGroup, options: AttentionOptions
    ) -> Tensor:
        """Compute attention of a group's queries, ``[tiles, size, H, D]``.

        Returns:
            ``[tiles * size, H, D]``.
        """
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
        gathered = []
        for layer, scratch in zip(cache, self._scratch, strict=True):
            pages = layer.view(-1, block_size * head_dim)
            target = scratch[: len(part.pages)]
            if layer.dtype == torch.float32:
                torch.index_select(pages, 0, part.pages, out=target)
            else:
                target.copy_(pages.index_select(0, part.pages))
            gathered.append(target)
        keys, values = gathered
        values.view(-1, head_dim).index_fill_(0, part.unwritten, 0)
        shape = (len(part.key_positions), num_kv_heads, -1, head_dim)
        return keys.view(shape), values.view(shape)


class TiledAttention:
    """Factory for tiled attention, which cuts each step into tiles and rounds; see ``Attention``.

    Args:
        block_size: number of tokens per KV block.
        num_kv_heads: K, the number of KV heads.
        head_dim: D, the size of a head.
        device: device of queries and KV cache.
    """

    def __init__(
        self,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device,
    ) -> None:
        self._block_size = block_size
        self._num_kv_heads = num_kv_heads
        self._device = device
        page_bytes = block_size * head_dim * torch.float32.itemsize
        self._least_blocks = -(-LEAST_ROUND // block_size)
        self._blocks_at_a_time = max(
            SCRATCH_BYTES[device.type] // (page_bytes * num_kv_heads), self._least_blocks
        )
        num_pages = self._blocks_at_a_time * num_kv_heads
        self._scratch = torch.empty(2, num_pages, block_size * head_dim, device=device)

    def plan(self, batch: Batch) -> TiledStep:
        """Prepare to cut the batch into tiles, and their contexts into rounds."""
        return TiledStep(
            self._tensor(batch.slot_mapping),
            GroupsByWindow(partial(self._plan_groups, batch)),
            self._scratch,
            self._num_kv_heads,
        )

    def _plan_groups(self, batch: Batch, window: int | None) -> Iterator[TileGroup]:
        for requests in (batch.decodes, batch.prefills):
            if len(requests):
                longest = int(batch.num_new[requests].max())  # a few tokens, if all are guesses
                yield self._plan_group(batch, requests, min(longest, PROMPT_TILE), window)

    def _plan_group(
        self, batch: Batch, requests: IntArray, tile_size: int, window: int | None
    ) -> TileGroup:
        starts, ends = batch.query_starts[requests], batch.query_starts[requests + 1]
        owner, index = enumerate_runs(-(-(ends - starts) // tile_size))
        first = starts[owner] + index * tile_size
        tokens = np.minimum(first[:, None] + np.arange(tile_size), ends[owner, None] - 1)
        positions = batch.positions[tokens]
        # A tile attends to the keys from ``oldest``, rounded down to a block, to its last token.
        oldest = np.maximum(positions[:, 0] - (window or 2**62) + 1, 0)
        first_block = oldest // self._block_size
        num_blocks = positions[:, -1] // self._block_size + 1 - first_block

        order = np.argsort(-num_blocks, kind="stable")
        tiles = Tiles(requests[owner][order], first_block[order], num_blocks[order])
        return TileGroup(
            self._tensor(tokens[order]),
            self._tensor(positions[order].astype(np.int32)),
            list(self._plan_rounds(batch, tiles)),
        )

    def _plan_rounds(self, batch: Batch, tiles: Tiles) -> Iterator[Round]:
        done = 0
        while done < tiles.num_blocks[0]:
            alive = int(np.searchsorted(-tiles.num_blocks, -done))
            # With fewer tiles left, each can have more keys per round.
            width = max(self._blocks_at_a_time // alive, self._least_blocks)
            width = min(width, int(tiles.num_blocks[0]) - done)
            tiles_at_a_time = max(self._blocks_at_a_time // width, 1)
            for first in range(0, alive, tiles_at_a_time):
                end = min(first + tiles_at_a_time, alive)
                yield self._plan_round(batch, tiles, slice(first, end), done, width)
            done += width

    def _plan_round(
        self, batch: Batch, tiles: Tiles, chosen: slice, done: int, width: int
    ) -> Round:
        request = tiles.request[chosen]
        index = tiles.first_block[chosen, None] + done + np.arange(width)
        # Past the end of a table, any block will do: its keys are masked.
        blocks = batch.block_tables[
            request[:, None], np.minimum(index, batch.block_tables.shape[1] - 1)
        ]
        heads = np.arange(self._num_kv_heads)
        pages = blocks[:, None, :].astype(np.int64) * self._num_kv_heads + heads[:, None]
        key_positions = index[:, :, None] * self._block_size + np.arange(self._block_size)
        key_positions = key_positions.reshape(len(request), -1)
        tile, key = np.nonzero(key_positions >= batch.seq_lens[request, None])
        unwritten = (tile[:, None] * len(heads) + heads) * key_positions.shape[1] + key[:, None]
        return Round(
            first_tile=chosen.start,
            end_tile=chosen.stop,
            pages=self._tensor(pages.reshape(-1)),
            key_positions=self._tensor(key_positions.astype(np.int32)),
            unwritten=self._tensor(unwritten.reshape(-1)),
        )

    def _tensor(self, array: "np.ndarray[tuple[int, ...], np.dtype[np.integer]]") -> Tensor:
        return torch.from_numpy(array).to(self._device)


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
    hidden = _hidden(positions, part.key_positions, options.window)
    by_token = scores.view(*scores.shape[:2], positions.shape[1], -1, scores.shape[-1])
    by_token.masked_fill_(hidden[:, None, :, None, :], -torch.inf)
    return scores


def _hidden(positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
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
