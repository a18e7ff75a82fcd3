"""Decode steps as recorded graphs: hundreds of kernels, one launch.

At small batches a kernel runs for a few microseconds, about as long as the CPU needs to launch it.
``recording`` says how that is avoided. In a steady decode step nothing is sent to the GPU at all:
who is in the batch is known there, and all else is in the table of rows (see ``row_table``).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minimal_vllm.attention.kernels.shared import SharedWork
from minimal_vllm.attention.triton_backend import TritonAttention, TritonMetadata
from minimal_vllm.device.transfer import send
from minimal_vllm.model.step import Step
from minimal_vllm.runner.interface import ModelState
from minimal_vllm.runner.kernels.rows import RowInputs, begin_step, end_step
from minimal_vllm.runner.recording import Recorder, Recording, batch_sizes, next_size
from minimal_vllm.runner.table import RowTable
from minimal_vllm.sampling.kernels.sample import sample_rows
from minimal_vllm.step.request import Request
from minimal_vllm.step.shared_prefix import find_shared_prefixes

KINDS_OF_BATCHES = (1, 2, 17, 33, 65, 129)
"""From so many requests on, up to the next number, a step of most models has the same kernels."""


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """Where a step leaves what it computes; graphs do so until the next one is replayed."""

    logits: Tensor
    """``[N, V]``"""
    tokens: Tensor
    """``[N]`` int64."""

    @classmethod
    def for_requests(cls, state: ModelState, count: int) -> "StepOutputs":
        """Room for so many."""
        weight = state.model.embed_tokens.weight
        logits = torch.empty(count, len(weight), dtype=weight.dtype, device=state.device)
        return cls(logits, torch.empty(count, dtype=torch.int64, device=state.device))

    def first(self, count: int) -> "StepOutputs":
        """Those of so many requests."""
        return StepOutputs(self.logits[:count], self.tokens[:count])


class GraphMemory:
    """What all graphs read and write.

    Args:
        state: a model on a GPU, with the Triton backend.
        table: the rows of requests.
        max_num_seqs: the largest batch.
        cascade: whether beginnings that requests share are read once for all of them.
    """

    def __init__(
        self, state: ModelState, table: RowTable, max_num_seqs: int, *, cascade: bool
    ) -> None:
        attention = state.backend.attention
        assert isinstance(attention, TritonAttention)  # noqa: S101 - the caller chose it
        self.state, self.table, self.attention = state, table, attention
        self.outputs = StepOutputs.for_requests(state, max_num_seqs)
        self.batch_sizes = list(batch_sizes(max_num_seqs))
        self.cascade = cascade
        self._shared = attention.new_shared_work(max_num_seqs)
        self._is_clean = True

    def note_shared(self, requests: Sequence[Request], size: int) -> bool:
        """Tell a graph for ``size`` requests which of them share a beginning; whether any do."""
        prefixes = find_shared_prefixes(requests, self.state.block_size) if self.cascade else []
        if prefixes or not self._is_clean:
            self._is_clean = False  # should what follows be left half done
            self.attention.fill_shared_work(self._shared, prefixes, size)
            self._is_clean = not prefixes
        return bool(prefixes)

    def shared(self, size: int) -> SharedWork:
        """What they share."""
        return self.attention.part_of_shared_work(self._shared, size)


def sample_and_end(
    state: ModelState,
    table: RowTable,
    order: Tensor,
    rows: RowInputs,
    hidden: Tensor,
    outputs: StepOutputs,
) -> None:
    """From the last hidden states of some rows to their next tokens, which the table then knows.

    Args:
        state: what to compute with.
        table: has the rows.
        order: ``[N]`` int32: which.
        rows: what ``begin_step`` says of them.
        hidden: ``[N, hidden]``.
        outputs: of ``N`` requests; written.
    """
    logits, tokens = outputs.logits, outputs.tokens
    state.model.logits(hidden, state.backend.ops, out=logits)
    sample_rows(logits, rows.sampling, tokens)
    end_step(table, order, tokens)


class DecodeGraphs:
    """Records steps in which each request computes one token, and replays them."""

    def __init__(self, memory: GraphMemory, recorder: Recorder) -> None:
        self._memory, self._recorder = memory, recorder
        self._order = torch.full_like(memory.outputs.tokens, memory.table.nobody, dtype=torch.int32)
        self._known: Sequence[Request] = []
        self._shares = False
        self._recordings: dict[tuple[int, bool], Recording] = {}

    def replay(self, requests: Sequence[Request]) -> StepOutputs:
        """Compute a token for each request, all of which are in the table."""
        size = next_size(self._memory.batch_sizes, len(requests))
        if requests != self._known:
            self._send_order(requests, size)
        if (size, self._shares) not in self._recordings:
            self._record(size, shares=self._shares)
        self._recordings[size, self._shares].replay()
        return self._memory.outputs.first(len(requests))

    def forget_order(self) -> None:
        """Other steps have run: requests may have moved, and what is noted as shared is theirs."""
        self._known = []

    def _send_order(self, requests: Sequence[Request], size: int) -> None:
        """Tell the graphs who is in the batch, and who of them shares a beginning."""
        self._known = requests
        order = np.full(size, self._memory.table.nobody, dtype=np.int32)
        order[: len(requests)] = [request.row for request in requests]
        self._order[:size].copy_(send(order, self._order.device))
        self._shares = self._memory.note_shared(requests, size)

    # ---- record ---------------------------------------------------------------------------------

    def small_steps(self) -> Iterator[Callable[[], None]]:
        """What needs most of the kernels that recordings need, by how many tokens there are."""
        sizes = self._memory.batch_sizes
        for size in {next_size(sizes, min(least, sizes[-1])) for least in KINDS_OF_BATCHES}:
            yield partial(self._compute, size, shares=False)

    def record(self, *, progress: bool) -> None:
        """Record all sizes. Those with shared beginnings are recorded when they are needed."""
        sizes = self._memory.batch_sizes[::-1]
        for size in tqdm(sizes, desc="Recording graphs", disable=None if progress else True):
            self._record(size, shares=False)

    def _record(self, size: int, *, shares: bool) -> None:
        known = self._order.clone()
        # What is computed while recording touches nobody.
        self._order.fill_(self._memory.table.nobody)
        compute = partial(self._compute, size, shares=shares)
        try:
            self._recordings[size, shares] = self._recorder.record(compute)
        finally:
            self._order.copy_(known)

    def _compute(self, size: int, *, shares: bool) -> None:
        """One step of the rows in ``_order``."""
        memory, order = self._memory, self._order[:size]
        state, table, attention = memory.state, memory.table, memory.attention
        shared = memory.shared(size) if shares else None
        rows = begin_step(table, order, state.block_size)
        everyone = torch.arange(size, dtype=torch.int32, device=state.device)
        decode = attention.plan_decode(everyone, rows.seq_lens, order, table.block_tables, shared)
        metadata = TritonMetadata(rows.slots, decode, shared, dict.fromkeys(decode), [])
        step = Step(state.backend.ops, attention, metadata)
        hidden = state.model.forward(rows.tokens, rows.positions, state.caches, step)
        sample_and_end(state, table, order, rows, hidden, memory.outputs.first(size))
