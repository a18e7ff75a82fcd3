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
written to RAM and read back, and the operating system would have to map it each time, which takes
several times as long as the arithmetic.

This file cuts a step into tiles and rounds; ``tiled_step`` computes them. ``long_prompt`` computes
long prompts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.attention.long_prompt import LongPrompt, piece_mask
from minimal_vllm.attention.tiled_step import (
    ByWindow,
    ContextGroup,
    Round,
    StepParts,
    TiledStep,
    TileGroup,
    TokenContexts,
    hidden_keys,
)
from minimal_vllm.step.batch import Batch, Int32Array, IntArray, enumerate_runs

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

PROMPT_TILE = 32
"""Maximum number of tokens per tile of a prompt: enough rows for an efficient matrix product."""
MIN_ROUND = 128
"""Minimum number of keys per round: enough columns for an efficient matrix product."""
LONG_PROMPT = 64
"""Minimum number of new tokens of a request that are computed in pieces instead of tiles."""
MAX_KEY_BYTES = 1 << 25
"""Maximum bytes of a long prompt's keys, and of its values, because all are gathered at once."""
SCRATCH_BYTES = {"cpu": 2 << 20, "cuda": 1 << 28}
"""Bytes of the scratch buffer for a round's keys, and of the one for its values. On a CPU they fit
into its cache. On a GPU they are large, because each operation costs a kernel launch."""

CONTEXT_BYTES = 8 << 20
"""Maximum bytes of the keys of a context that is gathered at once, and of its values."""
GROUP_BYTES = 2 << 20
"""Maximum bytes of the keys of a group of several contexts, and of their values."""
MAX_PADDING_BYTES = 128 << 10
"""Maximum bytes of a group's keys that are padding, because contexts differ in length. To gather
and multiply more takes longer than the calls for another group."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Blocks that each tile of a group attends to; tiles with the longest contexts come first."""

    request: IntArray
    """Index of each tile's request in the batch."""
    first_block: IntArray
    """Index of the first block in the request's block table."""
    num_blocks: IntArray
    """Number of blocks."""


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
        self._page_bytes = block_size * head_dim * torch.float32.itemsize
        self._min_blocks = -(-MIN_ROUND // block_size)
        self._blocks_at_a_time = max(
            SCRATCH_BYTES[device.type] // (self._page_bytes * num_kv_heads), self._min_blocks
        )
        num_pages = self._blocks_at_a_time * num_kv_heads
        self._scratch = torch.empty(2, num_pages, block_size * head_dim, device=device)

    def plan(self, batch: Batch) -> TiledStep:
        """Prepare to cut the batch into tiles, and their contexts into rounds."""
        return TiledStep(
            self._tensor(batch.slot_mapping),
            ByWindow(partial(self._plan_parts, batch, self._are_long(batch))),
            ByWindow(partial(self._plan_parts, batch, np.zeros(len(batch.seq_lens), dtype=bool))),
            ByWindow(partial(self._plan_contexts, batch)),
            self._scratch,
            self._num_kv_heads,
            self._block_size,
        )

    @cached_property
    def _context_scratch(self) -> Tensor:
        """Buffers of ``ContextGroup.scratch``: ``[2, rows, D]``."""
        num_rows = CONTEXT_BYTES * self._block_size // self._page_bytes
        head_dim = self._scratch.shape[2] // self._block_size
        return torch.empty(2, num_rows, head_dim, device=self._device)

    def _plan_contexts(self, batch: Batch, window: int | None) -> TokenContexts | None:
        """Return the contexts of all tokens; see ``TiledStep.contexts``."""
        num_new = batch.num_new
        order = np.argsort(-batch.positions, kind="stable")
        last = batch.positions[order]
        lengths = np.minimum(last + 1, window or 2**62)
        max_keys = self._context_scratch.shape[1] // self._num_kv_heads
        # Tokens of the same request would read the same keys again and again.
        at_once = lengths[0] if len(num_new) == len(last) else lengths.sum()
        if at_once > max_keys:
            return None
        tables = batch.block_tables[np.repeat(np.arange(len(num_new)), num_new)[order]]
        key_bytes = self._page_bytes * self._num_kv_heads // self._block_size
        sizes = GROUP_BYTES // key_bytes, MAX_PADDING_BYTES // key_bytes
        groups, new_rows = [], []
        for chosen in similar_lengths(lengths.tolist(), *sizes):
            group, own = self._plan_context_group(last[chosen], lengths[chosen], tables[chosen])
            groups.append(group)
            new_rows.append(own)
        return TokenContexts(self._tensor(order), self._tensor(np.concatenate(new_rows)), groups)

    def _plan_context_group(
        self, last: IntArray, lengths: IntArray, block_tables: Int32Array
    ) -> tuple[ContextGroup, IntArray]:
        """Return the contexts of ``t`` tokens, and the rows of their own keys, ``[t * K]``.

        Args:
            last: ``[t]``: positions of the tokens, which are the last ones of their contexts.
            lengths: ``[t]``: lengths of their contexts, longest first.
            block_tables: ``[t, B]``: blocks of their requests.
        """
        positions = (last - lengths + 1)[:, None] + np.arange(lengths[0])
        is_over = torch.from_numpy(positions > last[:, None]).to(self._device)
        positions = np.minimum(positions, last[:, None])
        blocks = np.take_along_axis(block_tables, positions // self._block_size, axis=1)
        heads = np.arange(self._num_kv_heads)[:, None]
        pages = blocks[:, None].astype(np.int64) * self._num_kv_heads + heads
        rows = pages * self._block_size + (positions % self._block_size)[:, None]
        bias = torch.zeros(is_over.shape, device=self._device).masked_fill_(is_over, -torch.inf)
        group = ContextGroup(
            len(last),
            self._tensor(rows.reshape(-1)),
            self._context_scratch[:, : rows.size],
            bias[:, None, None] if len(last) > 1 else None,
        )
        return group, rows[:, :, -1].reshape(-1)

    def _are_long(self, batch: Batch) -> BoolArray:
        """Return which requests are computed in pieces, ``[R]``."""
        if self._device.type != "cpu":
            return np.zeros(len(batch.seq_lens), dtype=bool)
        key_bytes = batch.seq_lens * (self._page_bytes * self._num_kv_heads // self._block_size)
        return (batch.num_new >= LONG_PROMPT) & (key_bytes <= MAX_KEY_BYTES)

    def _plan_parts(self, batch: Batch, is_long: BoolArray, window: int | None) -> StepParts:
        groups = []
        for requests in (batch.decodes, batch.prefills):
            tiled = requests[~is_long[requests]]
            if len(tiled):
                longest = int(batch.num_new[tiled].max())  # a few tokens, if all are guesses
                tile_size = min(longest, PROMPT_TILE)
                groups.append(self._plan_group(batch, tiled, tile_size, window))
        prompts = [self._plan_prompt(batch, each, window) for each in np.flatnonzero(is_long)]
        return StepParts(groups, prompts)

    def _plan_prompt(self, batch: Batch, request: np.intp, window: int | None) -> LongPrompt:
        first, end = batch.query_starts[request : request + 2].tolist()
        oldest, last = batch.positions[[first, end - 1]].tolist()
        oldest = max(oldest - (window or last + 1) + 1, 0)
        first_block = oldest // self._block_size
        blocks = batch.block_tables[request, first_block : last // self._block_size + 1]
        heads = np.arange(self._num_kv_heads)[:, None]
        pages = blocks.astype(np.int64) * self._num_kv_heads + heads
        mask = piece_mask(last + 1 - first_block * self._block_size, window)
        return LongPrompt(first, end, self._tensor(pages.reshape(-1)), mask, window)

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
        rounds = list(self._plan_rounds(batch, tiles))
        ordered = self._tensor(positions[order].astype(np.int32))
        num_parts = sum(part.end_tile - part.first_tile for part in rounds)
        is_simple = tile_size == 1 and num_parts == len(order)
        biases = [_bias(ordered, part, window) for part in rounds] if is_simple else None
        return TileGroup(self._tensor(tokens[order]), ordered, rounds, biases)

    def _plan_rounds(self, batch: Batch, tiles: Tiles) -> Iterator[Round]:
        done = 0
        while done < tiles.num_blocks[0]:
            alive = int(np.searchsorted(-tiles.num_blocks, -done))
            # With fewer tiles left, each can have more keys per round.
            width = max(self._blocks_at_a_time // alive, self._min_blocks)
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


def similar_lengths(lengths: list[int], max_keys: int, max_padding: int) -> Iterator[slice]:
    """Cut contexts into groups of similar lengths.

    Args:
        lengths: length of each context, longest first.
        max_keys: maximum number of keys of a group of several contexts, with padding.
        max_padding: maximum number of keys that pad a group's contexts to its longest.
    """
    first, padding = 0, 0
    for i, length in enumerate(lengths):
        padding += lengths[first] - length
        if i > first and (padding > max_padding or (i + 1 - first) * lengths[first] > max_keys):
            yield slice(first, i)
            first, padding = i, 0
    yield slice(first, len(lengths))


def _bias(positions: Tensor, part: Round, window: int | None) -> Tensor:
    """Return a round's entry of ``TileGroup.biases``; ``positions`` are those of all tiles."""
    chosen = positions[part.first_tile : part.end_tile]
    hidden = hidden_keys(chosen, part.key_positions, window)[:, None]
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)
