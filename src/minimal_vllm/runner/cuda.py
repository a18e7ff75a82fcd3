"""Running steps on a GPU without waiting for them.

A step is only *launched*: its work is queued on the GPU, and its tokens are fetched once the next
step is queued too. Last tokens, positions and block tables stay on the GPU (see ``table``), so that
the next step can be launched before the CPU knows which tokens this one samples. Most steps are
replayed as CUDA graphs. The largest steps, and those that ask for log-probabilities of prompts, are
launched kernel by kernel.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.device.transfer import Fetch, send
from minimal_vllm.outputs import TokenLogprobs
from minimal_vllm.runner.graphs import Graphs
from minimal_vllm.runner.interface import PromptLogprobs, StepResult
from minimal_vllm.runner.plain import all_prompt_logprobs
from minimal_vllm.runner.step import GpuStep, Outputs
from minimal_vllm.sampling.row import NO_TOKEN, needs_only_numbers
from minimal_vllm.sampling.sampler import Sampled, sample
from minimal_vllm.step.batch import build_batches
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request


@dataclass(frozen=True, slots=True)
class QueuedFlight:
    """Step that is queued on the GPU; see ``Flight``."""

    tokens: Fetch
    logprobs: list[TokenLogprobs | None]
    prompt_logprobs: list[PromptLogprobs]

    def wait(self) -> StepResult:
        """Wait until the tokens have been copied to the CPU, and return the step's result."""
        return StepResult(Sampled.one_each(self.tokens.wait(), self.logprobs), self.prompt_logprobs)


class CudaRunner:
    """Runner that launches steps on a GPU; see ``Runner``.

    Args:
        step: the parts of a step. Its table must be empty.
        graphs: CUDA graphs of ``step``. None: every step is launched kernel by kernel.
    """

    def __init__(self, step: GpuStep, graphs: Graphs | None) -> None:
        self._step = step
        self._graphs = graphs

    @torch.inference_mode()
    def launch(self, plan: Plan) -> QueuedFlight:
        """Queue the step on the GPU."""
        self._step.table.update(plan)
        prompt_logprobs: list[PromptLogprobs] = []
        if self._graphs and plan.is_steady_decode:
            outputs = self._graphs.decode(plan.sampling)
        else:
            outputs, prompt_logprobs = self._launch_mixed(plan)
        logprobs = self._sample_special(plan.sampling, outputs)
        return QueuedFlight(Fetch(outputs.tokens), logprobs, prompt_logprobs)

    def _launch_mixed(self, plan: Plan) -> tuple[Outputs, list[PromptLogprobs]]:
        """Launch a step with requests that don't decode, or any step if there are no graphs."""
        step = self._step
        batches = build_batches(plan, step.model.block_size, step.model.groups.number)
        batch = batches[0]
        if self._graphs:
            self._graphs.forget_order()
            if self._graphs.fits(batch):
                return self._graphs.mixed(plan, batch), []
        outputs = step.new_outputs(len(batch.sampling))
        hidden = step.run(
            step.batch_front(batches),
            self._order(batch.sampling),
            outputs,
            last=send(batch.logit_indices, step.model.device),
            keep_all=batch.wants_all_logits,
        )
        return outputs, list(all_prompt_logprobs(step.model, plan, batch, hidden))

    def _order(self, requests: list[Request]) -> Tensor:
        rows = np.array([request.row for request in requests], dtype=np.int32)
        return send(rows, self._step.model.device)

    def _sample_special(
        self, requests: list[Request], outputs: Outputs
    ) -> list[TokenLogprobs | None]:
        """Sample again for requests whose sampling parameters don't fit into the table of rows.

        Their tokens in ``outputs`` are overwritten.

        Returns:
            For each request, the log-probabilities that it asks for, or None.
        """
        logprobs: list[TokenLogprobs | None] = [None] * len(requests)
        special = [i for i, request in enumerate(requests) if not needs_only_numbers(request)]
        if special:
            device = self._step.model.device
            index = send(np.array(special), device)
            special_requests = [requests[i] for i in special]
            sampled = sample(outputs.logits[index], special_requests)
            for i, known in zip(special, sampled.logprobs, strict=True):
                logprobs[i] = known[0] if known else None
            one_each = [tokens[0] if tokens else NO_TOKEN for tokens in sampled.tokens]
            chosen = send(np.array(one_each), device)
            outputs.tokens[index] = chosen
            rows = send(np.array([request.row for request in special_requests]), device)
            self._step.table.note_tokens(rows, chosen)
        return logprobs
