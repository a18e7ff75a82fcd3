"""Steps on a GPU that the CPU does not wait for.

A step is only *launched* here: its work is put into the GPU's queue, and its tokens are fetched by
whoever waits for them, when the next step is in the queue already. Last tokens, positions and block
tables stay on the GPU (see ``row_table``), so that the next step can be launched before anyone
knows what this one samples. Steps in which every request computes one token are replayed from
recorded graphs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.engine.batch import build_batch
from minimal_vllm.engine.cuda_graph import DecodeGraphs
from minimal_vllm.engine.kernels.rows import begin_step
from minimal_vllm.engine.request import Request
from minimal_vllm.engine.row_table import RowTable
from minimal_vllm.engine.runner import (
    ModelState,
    PromptLogprobs,
    StepResult,
    all_prompt_logprobs,
    forward,
)
from minimal_vllm.engine.scheduler import Plan
from minimal_vllm.sampling.kernels.sample import sample_rows
from minimal_vllm.sampling.row import needs_only_numbers
from minimal_vllm.sampling.sampler import SamplerOutput, sample
from minimal_vllm.transfer import Fetch, send


@dataclass(frozen=True, slots=True)
class QueuedStep:
    """A step in the GPU's queue."""

    tokens: Fetch
    special: dict[int, int]
    """Rows of the full sampler's output, by their places among all."""
    sampled: SamplerOutput | None
    """The full sampler's."""
    prompt_logprobs: list[PromptLogprobs]

    def wait(self) -> StepResult:
        """Its tokens, once they are there."""
        token_ids = self.tokens.wait()
        logprobs = [
            self.sampled.logprobs[self.special[place]]
            if self.sampled and place in self.special
            else None
            for place in range(len(token_ids))
        ]
        return StepResult(SamplerOutput(token_ids, logprobs), self.prompt_logprobs)


class CudaRunner:
    """See ``Runner``.

    Args:
        state: a model on a GPU, with the Triton backend.
        table: empty.
        graphs: None: every step is launched kernel by kernel.
    """

    def __init__(self, state: ModelState, table: RowTable, graphs: DecodeGraphs | None) -> None:
        self._state = state
        self._table = table
        self._graphs = graphs

    @torch.inference_mode()
    def launch(self, plan: Plan) -> QueuedStep:
        """Put the step into the GPU's queue."""
        self._table.update(plan)
        if self._graphs and all(entry.num_new == 1 and entry.samples for entry in plan.scheduled):
            return self._replay(self._graphs, plan)
        return self._compute(plan)

    def _replay(self, graphs: DecodeGraphs, plan: Plan) -> QueuedStep:
        requests = plan.sampling
        logits, tokens = graphs.replay(requests)
        return self._finish(requests, logits, tokens, [])

    def _compute(self, plan: Plan) -> QueuedStep:
        """Without a graph: lengths differ, and so do the kernels' grids."""
        device, table = self._state.device, self._table
        if self._graphs:
            self._graphs.forget_order()
        batch = build_batch(plan, self._state.block_size)
        input_ids = send(batch.input_ids, device)
        if len(batch.pending):
            rows = send(batch.pending_rows, device)
            input_ids[send(batch.pending, device)] = table.last_tokens(rows)
        hidden, last = forward(self._state, batch, input_ids)
        rows = send(np.array([entry.request.row for entry in plan.scheduled]), device)
        seq_lens = send(batch.seq_lens, device)
        logits = self._state.model.logits(last, self._state.backend.ops)
        tokens = torch.empty(len(logits), dtype=torch.int64, device=device)
        table.note_positions(rows, seq_lens - 1)
        if batch.sampling:
            order = np.array([request.row for request in batch.sampling], dtype=np.int32)
            known = begin_step(table, send(order, device), self._state.block_size)
            sample_rows(logits, known.sampling, tokens)
            table.note_tokens(send(order.astype(np.int64), device), tokens)
        table.note_positions(rows, seq_lens)
        prompt = list(all_prompt_logprobs(self._state, plan, batch, hidden))
        return self._finish(batch.sampling, logits, tokens, prompt)

    def _finish(
        self,
        requests: list[Request],
        logits: Tensor,
        tokens: Tensor,
        prompt_logprobs: list[PromptLogprobs],
    ) -> QueuedStep:
        """Let the full sampler choose for those who ask for more than numbers can tell."""
        places = [
            place for place, request in enumerate(requests) if not needs_only_numbers(request)
        ]
        sampled = None
        if places:
            device = self._state.device
            index = send(np.array(places), device)
            sampled = sample(logits[index], [requests[place] for place in places])
            chosen = send(np.array(sampled.token_ids), device)
            tokens[index] = chosen
            rows = send(np.array([requests[place].row for place in places]), device)
            self._table.note_tokens(rows, chosen)
        special = {place: row for row, place in enumerate(places)}
        return QueuedStep(Fetch(tokens), special, sampled, prompt_logprobs)
