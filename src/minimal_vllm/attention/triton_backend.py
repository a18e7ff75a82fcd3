"""Paged attention by our own kernels: which token goes to which of them.

Requests with one new token go to the decode kernel, all others to the prefill kernel, so that a
step may mix them as it likes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.attention.kernels.decode import DecodeWork, Partials, decode_attention
from minimal_vllm.attention.kernels.pieces import NOBODY, cut, most_pieces
from minimal_vllm.attention.kernels.prefill import (
    ROWS,
    PrefillWork,
    cut_tiles,
    prefill_attention,
    tokens_per_tile,
    wanted_tiles,
)
from minimal_vllm.attention.kernels.shared import (
    PARTS,
    SharedWork,
    requests_per_tile,
    shared_attention,
)
from minimal_vllm.attention.library import (
    LEAST_TOKENS,
    FreshPrompts,
    fresh_attention,
    group_by_length,
    is_for_library,
)
from minimal_vllm.attention.metadata import AttentionMetadata
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.device.transfer import send
from minimal_vllm.step.batch import Batch, Int32Array, IntArray
from minimal_vllm.step.shared_prefix import SharedPrefix


@dataclass(frozen=True, slots=True)
class TritonMetadata(AttentionMetadata):
    """A step, as the kernels want it."""

    decode: dict[int | None, DecodeWork] | None
    """For each window that a layer of the model has."""
    shared: SharedWork | None
    """Used by layers without a window."""
    prefill: dict[int | None, PrefillWork | None]
    """For each window; without one, what ``fresh`` leaves."""
    fresh: list[FreshPrompts]
    """Computed by the library in layers without a window."""


class TritonAttention:
    """Plans the work of a step once, and does it in each layer.

    Args:
        windows: the sliding windows of the model's layers (None: a layer without).
        shape: H, K and D.
        max_num_seqs: at most so many requests are in a step.
        num_processors: of the GPU.
        device: it.
        dtype: of queries and cache.
    """

    def __init__(
        self,
        windows: frozenset[int | None],
        shape: tuple[int, int, int],
        max_num_seqs: int,
        num_processors: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.windows = windows
        self._uses_library = None in windows and is_for_library(device, dtype, shape[2])
        self._num_heads, self._num_kv_heads, self._head_dim = shape
        self._num_processors = num_processors
        self._device = device
        # Layers use these in turn, steps too: the GPU does one thing after the other.
        self._partials = self._new_partials(
            most_pieces(max_num_seqs, self._num_kv_heads, num_processors), self._num_heads
        )
        # Only fewer tiles than are wanted are cut, into as many pieces more at most.
        self._prefill_partials = self._new_partials(
            2 * wanted_tiles(self._num_kv_heads, num_processors) * ROWS, self._num_kv_heads
        )
        self._shared_partials = self._new_partials(PARTS * max_num_seqs, self._num_heads)
        self._arrivals = torch.zeros(
            max_num_seqs * self._num_kv_heads, dtype=torch.int32, device=device
        )

    def _new_partials(self, rows: int, num_heads: int) -> Partials:
        shape = (rows, num_heads, self._head_dim)
        return Partials(
            torch.empty(shape, device=self._device), torch.empty(shape[:2], device=self._device)
        )

    # ---- once a step: plan ----------------------------------------------------------------------

    def prepare(self, batch: Batch) -> TritonMetadata:
        """Move the batch to the GPU, its decoding requests apart from the others."""
        num_new = batch.num_new
        tables = self._send(batch.block_tables)
        decoding = np.flatnonzero(num_new == 1)
        decode = None
        if len(decoding):
            rows = np.stack((batch.query_starts[decoding], batch.seq_lens[decoding], decoding))
            token, seq_lens, table_row = self._send(rows.astype(np.int32))
            decode = self.plan_decode(token, seq_lens, table_row, tables, None)
        others = np.flatnonzero(num_new != 1)
        starts, ends = batch.query_starts[others], batch.query_starts[others + 1]
        is_fresh = (batch.positions[starts] == 0) & (ends - starts >= LEAST_TOKENS)
        is_fresh &= self._uses_library
        prefill = {
            window: self.plan_prefill(
                batch, others if window else others[~is_fresh], tables, window
            )
            for window in self.windows
        }
        prompts = [slice(*span) for span in np.stack((starts, ends), axis=1)[is_fresh].tolist()]
        slots, fresh = self._send(batch.slot_mapping), list(group_by_length(prompts))
        return TritonMetadata(slots, decode, None, prefill, fresh)

    def plan_decode(
        self,
        token: Tensor,
        seq_lens: Tensor,
        table_row: Tensor,
        block_tables: Tensor,
        shared: SharedWork | None,
    ) -> dict[int | None, DecodeWork]:
        """Cut contexts into pieces; all arguments are on the GPU, and so is all of the work.

        Args:
            token: see ``DecodeWork``.
            seq_lens: see ``DecodeWork``.
            table_row: see ``DecodeWork``.
            block_tables: see ``DecodeWork``.
            shared: beginnings that are read once for several requests.
        """
        works = {}
        for window in self.windows:
            here = shared if window is None else None
            starts = here.lengths if here else torch.zeros_like(seq_lens)
            if window is not None:
                starts = (seq_lens - window).clamp_(min=0)
            pieces = cut(starts, seq_lens, self._num_kv_heads, self._num_processors)
            works[window] = DecodeWork(
                *(token, seq_lens, table_row, block_tables, starts, pieces),
                self._partials,
                self._arrivals,
                here.as_part() if here else None,
            )
        return works

    def plan_prefill(
        self, batch: Batch, requests: IntArray, tables: Tensor, window: int | None
    ) -> PrefillWork | None:
        """Send the work of a step to the GPU; see ``cut_prompts``; None if there is none.

        ``tables`` are the batch's block tables, on the GPU.
        """
        pieces = self.cut_prompts(batch, requests, np.arange(len(batch.seq_lens)), window)
        if not len(pieces):
            return None
        return self.new_prefill_work(self._send(pieces), tables)

    def new_prefill_work(self, pieces: Tensor, tables: Tensor) -> PrefillWork:
        """Work on these pieces, which may be filled in later."""
        num_tiles = len(pieces)  # at most
        arrivals = torch.zeros(
            num_tiles * self._num_kv_heads, dtype=torch.int32, device=self._device
        )
        return PrefillWork(pieces, tables, self._prefill_partials, arrivals)

    def cut_prompts(
        self, batch: Batch, requests: IntArray, table_rows: IntArray, window: int | None
    ) -> Int32Array:
        """Cut the new tokens of some requests into tiles, and their contexts into pieces.

        Args:
            batch: the step's.
            requests: which of its requests.
            table_rows: ``[R]``: where the block table of each of its requests is.
            window: of the layers that it is for.

        Returns:
            ``[pieces, 9]``, see ``PrefillWork``.
        """
        starts, ends = batch.query_starts[requests], batch.query_starts[requests + 1]
        most_tokens = tokens_per_tile(self._num_heads, self._num_kv_heads)
        num_tiles = -(-(ends - starts) // most_tokens)
        owner = np.repeat(np.arange(len(requests)), num_tiles)
        index = np.arange(len(owner)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
        token = starts[owner] + index * most_tokens
        num_tokens = np.minimum(ends[owner] - token, most_tokens)
        position = batch.positions[token]
        longest_first = np.argsort(-position, kind="stable")
        tiles = np.stack((table_rows[requests[owner]], token, num_tokens, position), axis=1)
        programs = (self._num_kv_heads, self._num_processors)
        pieces = cut_tiles(tiles[longest_first], *programs, windowed=window is not None)
        return pieces.astype(np.int32)

    def most_prefill_pieces(self, num_tokens: int, num_prompts: int) -> int:
        """No step of so many has more pieces."""
        full_tiles = num_tokens // tokens_per_tile(self._num_heads, self._num_kv_heads)
        return full_tiles + num_prompts + wanted_tiles(self._num_kv_heads, self._num_processors)

    def new_shared_work(self, num_requests: int) -> SharedWork:
        """Room for what so many requests share; nobody shares anything yet."""
        per_tile = requests_per_tile(self._num_heads, self._num_kv_heads)
        shape = (self._num_shared_tiles(num_requests), per_tile)
        members = torch.full(shape, NOBODY, dtype=torch.int32, device=self._device)
        lengths = torch.zeros(num_requests, dtype=torch.int32, device=self._device)
        return SharedWork(members, lengths, self._shared_partials)

    def part_of_shared_work(self, work: SharedWork, num_requests: int) -> SharedWork:
        """The room in it that so many requests need."""
        num_tiles = self._num_shared_tiles(num_requests)
        return SharedWork(work.members[:num_tiles], work.lengths[:num_requests], work.partials)

    def _num_shared_tiles(self, num_requests: int) -> int:
        """Twice as many as are full; of many small groups the last share nothing."""
        return 2 * -(-num_requests // requests_per_tile(self._num_heads, self._num_kv_heads))

    def fill_shared_work(
        self, work: SharedWork, prefixes: Sequence[SharedPrefix], num_requests: int
    ) -> None:
        """Say who shares what, for ``part_of_shared_work(work, num_requests)`` to be read.

        Groups that find no room in its tiles share nothing.
        """
        members = np.full(work.members.shape, NOBODY, dtype=np.int32)
        lengths = np.zeros(len(work.lengths), dtype=np.int32)
        used, num_tiles = 0, self._num_shared_tiles(num_requests)
        for prefix in prefixes:
            needed = -(-len(prefix.members) // members.shape[1])
            if used + needed <= num_tiles:
                members[used : used + needed].reshape(-1)[: len(prefix.members)] = prefix.members
                lengths[prefix.members] = prefix.num_tokens
                used += needed
        work.members.copy_(self._send(members))
        work.lengths.copy_(self._send(lengths))

    def _send(self, array: IntArray | Int32Array) -> Tensor:
        return send(array, self._device)

    # ---- in each layer --------------------------------------------------------------------------

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: LayerCache,
        metadata: AttentionMetadata,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Attend over the cache; see ``Attention``."""
        assert isinstance(metadata, TritonMetadata)  # noqa: S101 - made by prepare
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if prefill := metadata.prefill[window]:
            prefill_attention(q, cache, prefill, scale, window, out)
        if window is None:
            for prompts in metadata.fresh:
                out = fresh_attention(q, k, v, prompts, scale, out)
        if metadata.decode:
            work = metadata.decode[window]
            if metadata.shared and work.shared:
                shared_attention(
                    q, cache, metadata.shared, work.token, work.table_row, work.block_tables, scale
                )
            decode_attention(q, cache, work, scale, out)
        return out
