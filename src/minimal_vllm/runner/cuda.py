"""Steps on a GPU that the CPU does not wait for.

A step is only *launched* here: its work is put into the GPU's queue, and its tokens are fetched by
whoever waits for them, when the next step is in the queue already. Last tokens, positions and block
tables stay on the GPU (see ``row_table``), so that the next step can be launched before anyone
knows what this one samples. Most steps are replayed from recorded graphs; the largest,
and those that ask for log-probabilities of prompts, are launched kernel by kernel.
"""

from dataclasses import dataclass

import numpy as np
import torch

from minimal_vllm.device.transfer import Fetch, send
from minimal_vllm.outputs import TokenLogprobs
from minimal_vllm.runner.cuda_graph import DecodeGraphs, StepOutputs, sample_and_end
from minimal_vllm.runner.interface import ModelState, PromptLogprobs, StepResult
from minimal_vllm.runner.kernels.rows import begin_step
from minimal_vllm.runner.mixed_graph import MixedGraphs
from minimal_vllm.runner.plain import all_prompt_logprobs, forward
from minimal_vllm.runner.table import RowTable
from minimal_vllm.sampling.row import needs_only_numbers
from minimal_vllm.sampling.sampler import SamplerOutput, sample
from minimal_vllm.step.batch import Batch, build_batch
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request


@dataclass(frozen=True, slots=True)
class StepGraphs:
    """The recordings of steps in which all requests decode, and of others that ``mixed.fits``."""

    decode: DecodeGraphs
    mixed: MixedGraphs


@dataclass(frozen=True, slots=True)
class QueuedStep:
    """A step in the GPU's queue."""

    tokens: Fetch
    logprobs: list[TokenLogprobs | None]
    prompt_logprobs: list[PromptLogprobs]

    def wait(self) -> StepResult:
        """Its tokens, once they are there."""
        return StepResult(SamplerOutput(self.tokens.wait(), self.logprobs), self.prompt_logprobs)


class CudaRunner:
    """See ``Runner``.

    Args:
        state: a model on a GPU, with the Triton backend.
        table: empty.
        graphs: None: every step is launched kernel by kernel.
    """

    def __init__(self, state: ModelState, table: RowTable, graphs: StepGraphs | None) -> None:
        self._state = state
        self._table = table
        self._graphs = graphs

    @torch.inference_mode()
    def launch(self, plan: Plan) -> QueuedStep:
        """Put the step into the GPU's queue."""
        self._table.update(plan)
        graphs = self._graphs
        if graphs and all(entry.num_new == 1 and entry.samples for entry in plan.scheduled):
            requests = plan.sampling
            return self._finish(requests, graphs.decode.replay(requests), [])
        batch = build_batch(plan, self._state.block_size)
        if graphs:
            graphs.decode.forget_order()
            if graphs.mixed.fits(batch):
                return self._finish(batch.sampling, graphs.mixed.replay(plan, batch), [])
        return self._compute(plan, batch)

    def _compute(self, plan: Plan, batch: Batch) -> QueuedStep:
        """Without a graph: each kernel is launched by the CPU."""
        state, table, device = self._state, self._table, self._state.device
        input_ids = send(batch.input_ids, device)
        if len(batch.pending):
            places = send(batch.query_starts[batch.pending + 1] - 1, device)
            input_ids[places] = table.last_tokens(send(batch.rows[batch.pending], device))
        hidden, last = forward(state, batch, input_ids)
        outputs = StepOutputs.for_requests(state, len(batch.sampling))
        if batch.sampling:
            sampling_rows = np.array([request.row for request in batch.sampling], dtype=np.int32)
            order = send(sampling_rows, device)
            rows = begin_step(table, order, state.block_size)
            sample_and_end(state, table, order, rows, last, outputs)
        prompt = list(all_prompt_logprobs(state, plan, batch, hidden))
        return self._finish(batch.sampling, outputs, prompt)

    def _finish(
        self,
        requests: list[Request],
        outputs: StepOutputs,
        prompt_logprobs: list[PromptLogprobs],
    ) -> QueuedStep:
        """Let the full sampler choose for those who ask for more than numbers can tell."""
        logits, tokens = outputs.logits, outputs.tokens
        special = [
            place for place, request in enumerate(requests) if not needs_only_numbers(request)
        ]
        logprobs: list[TokenLogprobs | None] = [None] * len(requests)
        if special:
            device, chosen_for = self._state.device, [requests[place] for place in special]
            index = send(np.array(special), device)
            sampled = sample(logits[index], chosen_for)
            for place, known in zip(special, sampled.logprobs, strict=True):
                logprobs[place] = known
            tokens[index] = chosen = send(np.array(sampled.token_ids), device)
            rows = send(np.array([request.row for request in chosen_for]), device)
            self._table.note_tokens(rows, chosen)
        return QueuedStep(Fetch(tokens), logprobs, prompt_logprobs)
