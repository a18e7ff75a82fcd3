"""Decode steps as recorded graphs: hundreds of kernels, one launch.

At small batches a kernel runs for a few microseconds, about as long as the CPU needs to launch it.
A CUDA graph records the launches of a whole step, with all their arguments, and repeats them at one
command. Addresses and grids are part of the recording: so inputs and outputs stay where they are,
and there is a recording for each size of batch; a batch is padded to the next size.

Source: CUDA Programming Guide, https://docs.nvidia.com/cuda/cuda-programming-guide/, "CUDA Graphs".
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from minimal_vllm.attention.kernels.shared import SharedWork
from minimal_vllm.attention.triton_backend import TritonAttention, TritonMetadata
from minimal_vllm.engine.kernels.rows import begin_step, end_step
from minimal_vllm.engine.request import Request
from minimal_vllm.engine.row_table import RowTable, padded_order
from minimal_vllm.engine.runner import ModelState
from minimal_vllm.engine.shared_prefix import find_shared_prefixes
from minimal_vllm.model.step import Step
from minimal_vllm.sampling.kernels.sample import sample_rows
from minimal_vllm.transfer import send


class DecodeGraphs:
    """Records decode steps, and replays them.

    Args:
        state: a model on a GPU, with the Triton backend.
        table: the rows that steps read and write.
        max_num_seqs: the largest batch.
        cascade: whether beginnings that requests share are read once for all of them.
        progress: whether to show a bar while recording.
    """

    def __init__(
        self,
        state: ModelState,
        table: RowTable,
        max_num_seqs: int,
        *,
        cascade: bool,
        progress: bool = False,
    ) -> None:
        attention = state.backend.attention
        assert isinstance(attention, TritonAttention)  # noqa: S101 - the caller chose it
        self._state, self._table, self._attention = state, table, attention
        self._cascade = cascade
        self._sizes = list(batch_sizes(max_num_seqs))
        self._order = torch.full(
            (self._sizes[-1],), table.nobody, dtype=torch.int32, device=state.device
        )
        self._shared = attention.new_shared_work(self._sizes[-1])
        vocab_size, dtype = state.model.embed_tokens.weight.shape[0], state.caches[0].key.dtype
        self._logits = torch.empty(self._sizes[-1], vocab_size, dtype=dtype, device=state.device)
        self._tokens = torch.empty_like(self._order, dtype=torch.int64)
        self._known: Sequence[Request] = []
        self._shares = False
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._recordings: dict[tuple[int, bool], torch.cuda.CUDAGraph] = {}
        # The largest first: the others fit into its memory.
        for size in tqdm(
            self._sizes[::-1], desc="Recording graphs", disable=None if progress else True
        ):
            self._record(size, shares=False)

    def replay(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
        """Compute a token for each request, all of which are in the table.

        Returns:
            Logits ``[N, V]`` and tokens ``[N]`` int64, valid until the next replay.
        """
        size = next(size for size in self._sizes if size >= len(requests))
        if requests != self._known:
            self._send_order(requests, size)
        if (size, self._shares) not in self._recordings:
            self._record(size, shares=self._shares)
        self._recordings[size, self._shares].replay()
        return self._logits[: len(requests)], self._tokens[: len(requests)]

    def forget_order(self) -> None:
        """Other steps have run: requests may have moved to other blocks."""
        self._known = []

    def _send_order(self, requests: Sequence[Request], size: int) -> None:
        """Tell the graphs who is in the batch, and who of them shares a beginning."""
        self._known = requests
        order = padded_order([request.row for request in requests], size, self._table.nobody)
        self._order[:size].copy_(send(order, self._state.device))
        if self._cascade:
            prefixes = find_shared_prefixes(requests, self._state.block_size)
            if prefixes or self._shares:
                self._attention.fill_shared_work(self._shared, prefixes)
            self._shares = bool(prefixes)

    @torch.inference_mode()
    def _record(self, size: int, *, shares: bool) -> None:
        known = self._order.clone()
        self._order.fill_(self._table.nobody)  # what is computed while recording touches nobody
        self._compute(size, shares=shares)  # compiles what isn't yet, and lets libraries prepare
        graph = torch.cuda.CUDAGraph()
        # As torch.cuda.graph does, but for collecting garbage, which takes longer than all else.
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool)
            self._compute(size, shares=shares)
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        self._order.copy_(known)
        self._recordings[size, shares] = graph

    def _compute(self, size: int, *, shares: bool) -> None:
        """One step of the rows in ``_order``; leaves ``_logits`` and ``_tokens``."""
        state, order = self._state, self._order[:size]
        logits, tokens = self._logits[:size], self._tokens[:size]
        shared = self._shared_of(size) if shares else None
        rows = begin_step(self._table, order, state.block_size)
        everyone = torch.arange(size, dtype=torch.int32, device=state.device)
        decode = self._attention.plan_decode(
            everyone, rows.seq_lens, order, self._table.block_tables, shared
        )
        metadata = TritonMetadata(rows.slots, decode, shared, dict.fromkeys(decode), [])
        step = Step(state.backend.ops, self._attention, metadata)
        hidden = state.model.forward(rows.tokens, rows.positions, state.caches, step)
        state.model.logits(hidden, state.backend.ops, out=logits)
        sample_rows(logits, rows.sampling, tokens)
        end_step(self._table, order, tokens)

    def _shared_of(self, size: int) -> SharedWork:
        """The part of the shared work that a batch of this size can have."""
        num_tiles = self._attention.num_shared_tiles(size)
        return SharedWork(
            self._shared.members[:num_tiles], self._shared.lengths[:size], self._shared.partials
        )


def batch_sizes(most: int) -> Iterator[int]:
    """The batch sizes that are recorded: dense where a step's time depends on it."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, most, 16)]
    yield from (size for size in sizes if size < most)
    yield most
