"""Paged attention with our own Triton kernels.

The decode kernel computes requests that decode, and the prefill kernel all others, so that a step
can mix them freely.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.attention.interface import AttentionOptions
from minimal_vllm.attention.kernels.decode import (
    DecodeWork,
    decode_attention,
    queries_per_program,
)
from minimal_vllm.attention.kernels.pieces import NO_REQUEST, cut, max_pieces
from minimal_vllm.attention.kernels.prefill import (
    ROWS,
    PrefillWork,
    cut_tiles,
    prefill_attention,
    tokens_per_tile,
    wanted_tiles,
)
from minimal_vllm.attention.kernels.shared import (
    SharedWork,
    requests_per_tile,
    shared_attention,
    wanted_parts,
)
from minimal_vllm.attention.kernels.softmax import Partials
from minimal_vllm.attention.library import (
    MIN_TOKENS,
    FreshPrompts,
    PlanBudget,
    can_use_library,
    fresh_attention,
    group_by_length,
)
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.device.transfer import send
from minimal_vllm.step.batch import Batch, Int32Array, IntArray, enumerate_runs
from minimal_vllm.step.shared_prefix import SharedPrefix


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonStep:
    """A step's attention as work for the kernels; see ``StepAttention``."""

    slots: Tensor
    """Cache slot of each token, ``[T]`` int64. Negative: its key and value are not stored."""
    decode: dict[int | None, DecodeWork] = field(default_factory=dict)
    """Work of the decode kernel, by the layers' sliding window."""
    shared: SharedWork | None = None
    """Prefixes to read once for several decoding requests, in layers without a window."""
    prefill: dict[int | None, PrefillWork | None] = field(default_factory=dict)
    """Work of the prefill kernel, by the layers' sliding window. Layers without a window exclude
    the prompts in ``fresh``."""
    fresh: Sequence[FreshPrompts] = ()
    """Prompts that cuDNN's kernel computes, in layers without a window."""

    def on_blocks(self, slots: Tensor, block_tables: Tensor) -> "TritonStep":
        """Return the same work on the blocks of another group of layers.

        Args:
            slots: ``[T]`` int64: cache slot of each token.
            block_tables: ``[rows, max blocks]`` int32, with the same rows.
        """
        return replace(
            self,
            slots=slots,
            decode={
                window: replace(work, block_tables=block_tables)
                for window, work in self.decode.items()
            },
            prefill={
                window: work and replace(work, block_tables=block_tables)
                for window, work in self.prefill.items()
            },
        )

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: LayerCache,
        options: AttentionOptions,
    ) -> Tensor:
        """Compute attention over the cache; see ``StepAttention``."""
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if prefill := self.prefill.get(options.window):
            prefill_attention(q, cache, prefill, options, out)
        if options.window is None:
            for prompts in self.fresh:
                out = fresh_attention(q, k, v, prompts, options.scale, out)
        if decode := self.decode.get(options.window):
            if self.shared and decode.shared:
                shared_attention(
                    q,
                    cache,
                    self.shared,
                    decode.token,
                    decode.table_row,
                    decode.block_tables,
                    options,
                )
            decode_attention(q, cache, decode, options, out)
        return out


class TritonAttention:
    """Planner of each step's work for our kernels; see ``Attention``.

    Args:
        windows: sliding windows of the model's layers; None stands for layers without one.
        num_heads: H, the number of query heads.
        num_kv_heads: K, the number of KV heads.
        head_dim: D, the size of a head.
        max_num_seqs: maximum number of requests in a step.
        max_guessed: maximum number of tokens in a step with guesses; 0: there are none.
        num_sms: number of streaming multiprocessors of the GPU.
        device: the GPU.
        dtype: dtype of queries and KV cache.
        plain: whether all layers' options are plain; only then can cuDNN's kernel compute them.
        num_layers: number of layers without a window, which decides when cuDNN's plan for a new
            length is worth its time. None: it is made at once.
    """

    def __init__(
        self,
        *,
        windows: frozenset[int | None],
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        max_num_seqs: int,
        num_sms: int,
        device: torch.device,
        dtype: torch.dtype,
        plain: bool = True,
        num_layers: int | None = None,
        max_guessed: int = 0,
    ) -> None:
        self.windows = windows
        self._uses_library = plain and None in windows and can_use_library(device, dtype, head_dim)
        self._num_heads = num_heads
        self._num_kv_heads = num_kv_heads
        self._head_dim = head_dim
        self._num_sms = num_sms
        self._device = device
        self._dtype = dtype
        self._budget = PlanBudget(num_heads, head_dim, num_layers)
        # All layers and all steps share these buffers, because the GPU runs them one at a time.
        self.max_queries = queries_per_program(num_heads, num_kv_heads)
        num_partials = max_pieces(max_num_seqs, num_kv_heads, num_sms)
        if max_guessed:
            pieces_with_guesses = max_pieces(max_guessed, num_kv_heads, num_sms)
            num_partials = max(num_partials, self.max_queries * pieces_with_guesses)
        self._partials = self._new_partials(num_partials, num_heads)
        # Tiles are cut only if there are fewer than wanted, and add at most that many pieces.
        self._prefill_partials = self._new_partials(
            2 * wanted_tiles(num_kv_heads, num_sms) * ROWS, num_kv_heads
        )
        sizes = range(1, max_num_seqs + 1)
        self._shared_partials = self._new_partials(
            max(size * self._num_shared_parts(size) for size in sizes), num_heads
        )
        max_requests = max(max_num_seqs, max_guessed)
        self._arrivals = torch.zeros(max_requests * num_kv_heads, dtype=torch.int32, device=device)
        # Made once, not by a kernel in each step.
        self._rows = torch.arange(max_requests, dtype=torch.int32, device=device)
        self._zeros = torch.zeros_like(self._rows)

    def _new_partials(self, rows: int, num_heads: int) -> Partials:
        shape = (rows, num_heads, self._head_dim)
        return Partials(
            torch.empty(shape, device=self._device), torch.empty(shape[:2], device=self._device)
        )

    def plan(self, batch: Batch, shared: SharedWork | None = None) -> TritonStep:
        """Move the batch to the GPU, and divide its requests among the kernels.

        Args:
            batch: the batch of the step.
            shared: prefixes that several of its decoding requests share.
        """
        block_tables = send(batch.block_tables, self._device)
        prefills = batch.prefills
        starts, ends = batch.query_starts[prefills], batch.query_starts[prefills + 1]
        fresh = self._choose_fresh(batch, starts, ends)
        is_fresh = np.isin(starts, [rows.start for prompts in fresh for rows in prompts.rows])
        return TritonStep(
            slots=send(batch.slot_mapping, self._device),
            decode=self._plan_decodes(batch, block_tables, shared),
            shared=shared,
            prefill={
                window: self.plan_prefill(
                    batch, prefills if window else prefills[~is_fresh], block_tables, window
                )
                for window in self.windows
            },
            fresh=fresh,
        )

    def _choose_fresh(self, batch: Batch, starts: IntArray, ends: IntArray) -> list[FreshPrompts]:
        """Return the prompts that cuDNN's kernel computes, of those with these first rows."""
        if not self._uses_library:
            return []
        is_fresh = (batch.positions[starts] == 0) & (ends - starts >= MIN_TOKENS)
        spans = np.stack((starts, ends), axis=1)[is_fresh].tolist()
        batches = group_by_length([slice(start, end) for start, end in spans])
        return [prompts for prompts in batches if self._budget.is_worth_a_plan(prompts)]

    @torch.inference_mode()
    def start_library(self) -> None:
        """Let cuDNN initialize and make its first plan, which takes longer than all later ones."""
        if self._uses_library:
            shape = (MIN_TOKENS, self._num_heads, self._head_dim)
            q = torch.zeros(shape, dtype=self._dtype, device=self._device)
            k = q[:, : self._num_kv_heads].contiguous()
            prompts = FreshPrompts([slice(0, MIN_TOKENS)], MIN_TOKENS)
            fresh_attention(q, k, k, prompts, 1.0, torch.empty_like(q))

    # ---- requests that decode -------------------------------------------------------------------

    def _plan_decodes(
        self, batch: Batch, block_tables: Tensor, shared: SharedWork | None
    ) -> dict[int | None, DecodeWork]:
        decodes = batch.decodes
        if not len(decodes):
            return {}
        rows = np.stack((batch.query_starts[decodes], batch.seq_lens[decodes], decodes))
        token, seq_lens, table_row = send(rows.astype(np.int32), self._device)
        return self.plan_decode(token, seq_lens, table_row, block_tables, shared)

    def plan_decode(
        self,
        token: Tensor | None,
        seq_lens: Tensor,
        table_row: Tensor,
        block_tables: Tensor,
        shared: SharedWork | None,
        counts: Tensor | None = None,
    ) -> dict[int | None, DecodeWork]:
        """Cut the contexts of decoding requests into pieces, on the GPU.

        Args:
            token: ``[R]`` int32: each request's row in ``q``; see ``DecodeWork``. None: they are in
                order.
            seq_lens: ``[R]`` int32: number of cached tokens of each request; 0 for padding.
            table_row: ``[R]`` int32: each request's row in ``block_tables``.
            block_tables: ``[rows, max blocks]`` int32.
            shared: prefixes that are read once for several requests; not together with ``counts``.
            counts: ``[R]`` int32: number of tokens of each request, at most ``max_queries``; see
                ``DecodeWork``. None: one each.

        Returns:
            The work of the decode kernel, by the layers' sliding window.
        """
        works, count = {}, len(seq_lens)
        for window in self.windows:
            shared_here = shared if window is None else None
            starts = shared_here.lengths if shared_here else self._zeros[:count]
            works[window] = DecodeWork(
                token=self._rows[:count] if token is None else token,
                seq_lens=seq_lens,
                table_row=table_row,
                block_tables=block_tables,
                pieces=cut(starts, seq_lens, self._num_kv_heads, self._num_sms, window),
                partials=self._partials,
                arrivals=self._arrivals,
                shared=shared_here.as_part() if shared_here else None,
                counts=counts,
                max_queries=1 if counts is None else self.max_queries,
            )
        return works

    # ---- requests that compute several tokens ---------------------------------------------------

    def plan_prefill(
        self, batch: Batch, requests: IntArray, block_tables: Tensor, window: int | None
    ) -> PrefillWork | None:
        """Cut the new tokens of some requests into pieces, and send these to the GPU.

        Args:
            batch: the batch of the step.
            requests: indices of the requests in the batch.
            block_tables: the batch's block tables, on the GPU.
            window: sliding window of the layers that the work is for.

        Returns:
            The work of the prefill kernel, or None if there is none.
        """
        pieces = self.cut_prompts(batch, requests, np.arange(len(batch.seq_lens)), window)
        if not len(pieces):
            return None
        return self.new_prefill_work(send(pieces, self._device), block_tables)

    def new_prefill_work(self, pieces: Tensor, block_tables: Tensor) -> PrefillWork:
        """Make the prefill kernel's work on ``pieces``, ``[pieces, 9]``, to be filled in later."""
        arrivals = torch.zeros(
            len(pieces) * self._num_kv_heads, dtype=torch.int32, device=self._device
        )
        return PrefillWork(pieces, block_tables, self._prefill_partials, arrivals)

    def cut_prompts(
        self, batch: Batch, requests: IntArray, table_rows: IntArray, window: int | None
    ) -> Int32Array:
        """Cut the new tokens of some requests into tiles, and their contexts into pieces.

        Args:
            batch: the batch of the step.
            requests: indices of the requests in the batch.
            table_rows: ``[R]``: row of each of the batch's requests in the block tables.
            window: sliding window of the layers that the work is for.

        Returns:
            ``[pieces, 9]`` int32; see ``PrefillWork``.
        """
        starts, ends = batch.query_starts[requests], batch.query_starts[requests + 1]
        max_step_tokens = tokens_per_tile(self._num_heads, self._num_kv_heads)
        num_tiles = -(-(ends - starts) // max_step_tokens)
        owner, index = enumerate_runs(num_tiles)
        token = starts[owner] + index * max_step_tokens
        num_tokens = np.minimum(ends[owner] - token, max_step_tokens)
        position = batch.positions[token]
        longest_first = np.argsort(-position, kind="stable")
        tiles = np.stack((table_rows[requests[owner]], token, num_tokens, position), axis=1)
        pieces = cut_tiles(
            tiles[longest_first], self._num_kv_heads, self._num_sms, windowed=window is not None
        )
        return pieces.astype(np.int32)

    def max_prefill_pieces(self, num_tokens: int, num_prompts: int) -> int:
        """Return the maximum number of pieces in a step with that many tokens and prompts."""
        full_tiles = num_tokens // tokens_per_tile(self._num_heads, self._num_kv_heads)
        return full_tiles + num_prompts + wanted_tiles(self._num_kv_heads, self._num_sms)

    # ---- shared prefixes ------------------------------------------------------------------------

    def new_shared_work(self, num_requests: int) -> SharedWork:
        """Allocate work on shared prefixes for up to ``num_requests`` requests; none share yet."""
        per_tile = requests_per_tile(self._num_heads, self._num_kv_heads)
        shape = (self._num_shared_tiles(num_requests), per_tile)
        members = torch.full(shape, NO_REQUEST, dtype=torch.int32, device=self._device)
        lengths = torch.zeros(num_requests, dtype=torch.int32, device=self._device)
        return SharedWork(
            members, lengths, self._shared_partials, self._num_shared_parts(num_requests)
        )

    def part_of_shared_work(self, work: SharedWork, num_requests: int) -> SharedWork:
        """Return the part of ``work`` that a step of ``num_requests`` requests uses."""
        num_tiles = self._num_shared_tiles(num_requests)
        return SharedWork(
            work.members[:num_tiles],
            work.lengths[:num_requests],
            work.partials,
            self._num_shared_parts(num_requests),
        )

    def _num_shared_parts(self, num_requests: int) -> int:
        num_tiles = self._num_full_tiles(num_requests)
        return wanted_parts(num_tiles, self._num_kv_heads, self._num_sms)

    def _num_shared_tiles(self, num_requests: int) -> int:
        """Return the number of tiles: twice the number of full ones.

        If there are more small groups than that, the last ones share nothing.
        """
        return 2 * self._num_full_tiles(num_requests)

    def _num_full_tiles(self, num_requests: int) -> int:
        """Return the number of tiles that hold all requests, if they share one prefix."""
        return -(-num_requests // requests_per_tile(self._num_heads, self._num_kv_heads))

    def fill_shared_work(
        self, work: SharedWork, prefixes: Sequence[SharedPrefix], num_requests: int
    ) -> None:
        """Write the shared prefixes into ``work``, for a step of ``num_requests`` requests.

        A group of requests for which no tile is left shares nothing.
        """
        members = np.full(work.members.shape, NO_REQUEST, dtype=np.int32)
        lengths = np.zeros(len(work.lengths), dtype=np.int32)
        num_tiles = self._num_shared_tiles(num_requests)
        used = 0
        for prefix in prefixes:
            needed = -(-len(prefix.members) // members.shape[1])
            if used + needed <= num_tiles:
                members[used : used + needed].reshape(-1)[: len(prefix.members)] = prefix.members
                lengths[prefix.members] = prefix.num_tokens
                used += needed
        work.members.copy_(send(members, self._device))
        work.lengths.copy_(send(lengths, self._device))
