"""Running steps on a GPU without waiting for them.

A step is only *launched*: its work is queued on the GPU, and its tokens are fetched once the next
step is queued too. Last tokens, positions and block tables stay on the GPU (see ``table``), so that
the next step can be launched before the CPU knows which tokens this one samples. Most steps are
replayed as CUDA graphs. The largest steps are launched kernel by kernel. So is what only some
requests ask for, after the rest of their step: rules that change logits, and log-probabilities. The
CPU waits for none of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.device.transfer import Fetch, send
from minimal_vllm.runner.graphs import Graphs, decoding_requests
from minimal_vllm.runner.interface import Flight, StepResult
from minimal_vllm.runner.prompt_logprobs import QueuedPromptLogprobs, all_prompt_logprobs
from minimal_vllm.runner.step import GpuStep, Outputs
from minimal_vllm.sampling.kernels.logprobs import find_logprobs
from minimal_vllm.sampling.logprobs import AskedLogprobs, QueuedLogprobs
from minimal_vllm.sampling.row import SamplingRow, needs_only_numbers
from minimal_vllm.sampling.sampler import Sampled, choose
from minimal_vllm.step.batch import Batch, build_batches
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request


@dataclass(frozen=True, slots=True)
class QueuedFlight:
    """Step that is queued on the GPU; see ``Flight``."""

    tokens: Fetch
    logprobs: QueuedLogprobs | None
    """Log-probabilities of these tokens; None if no request asks for any."""
    prompt_logprobs: list[QueuedPromptLogprobs]

    def wait(self) -> StepResult:
        """Wait until everything has been copied to the CPU, and return the step's result."""
        token_ids = self.tokens.wait()
        logprobs = self.logprobs.wait() if self.logprobs is not None else None
        prompt = [part for each in self.prompt_logprobs for part in each.wait()]
        return StepResult(Sampled.one_each(token_ids, logprobs), prompt)


class CudaRunner:
    """Runner that launches steps on a GPU; see ``Runner``.

    Args:
        step: the parts of a step. Its table must be empty.
        graphs: CUDA graphs of ``step``. None: every step is launched kernel by kernel.
    """

    def __init__(self, step: GpuStep, graphs: Graphs | None) -> None:
        self._step = step
        self._graphs = graphs
        self._last_asking: tuple[list[Request], AskedLogprobs | None] = ([], None)

    def idle_work(self) -> Iterator[None]:
        """Record the graphs that are not recorded yet, one by one; see ``HasIdleWork``."""
        return self._graphs.recordings() if self._graphs else iter(())

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Flight:
        """Queue the step on the GPU."""
        self._step.table.update(plan)
        prompt_logprobs: list[QueuedPromptLogprobs] = []
        if self._graphs and plan.is_steady_decode:
            outputs = self._graphs.decode(plan.sampling)
        else:
            outputs, prompt_logprobs = self._launch_mixed(plan)
        self._sample_special(plan.sampling, outputs)
        return self.fetch(plan.sampling, outputs, prompt_logprobs)

    def fetch(
        self,
        requests: list[Request],
        outputs: Outputs,
        prompt_logprobs: list[QueuedPromptLogprobs],
    ) -> QueuedFlight:
        """Queue the transfer of a step's tokens, and of the log-probabilities that are asked for.

        Args:
            requests: the request of each row of outputs.
            outputs: logits and tokens.
            prompt_logprobs: log-probabilities of prompts.
        """
        asked, logprobs = self._asked_logprobs(requests), None
        if asked is not None:
            found = find_logprobs(outputs.logits, outputs.tokens, asked)
            logprobs = QueuedLogprobs(Fetch(found), asked)
        return QueuedFlight(Fetch(outputs.tokens), logprobs, prompt_logprobs)

    def _launch_mixed(self, plan: Plan) -> tuple[Outputs, list[QueuedPromptLogprobs]]:
        """Launch a step with requests that don't decode, or any step if there are no graphs."""
        step = self._step
        batches = build_batches(plan, step.model.block_size, step.model.groups.number)
        batch, shared = batches[0], None
        if self._graphs:
            self._graphs.forget_order()
            if self._graphs.fits(batch):
                outputs, hidden = self._graphs.mixed(plan, batch), self._graphs.hidden
                return outputs, self._prompt_logprobs(plan, batch, hidden)
            shared = self._graphs.shared.find(decoding_requests(plan))
        outputs = step.new_outputs(len(batch.sampling))
        hidden = step.run(
            step.batch_front(batches, shared),
            self._order(batch.sampling),
            outputs,
            last=send(batch.logit_indices, step.model.device),
            keep_all=batch.wants_all_logits,
        )
        return outputs, self._prompt_logprobs(plan, batch, hidden)

    def _prompt_logprobs(
        self, plan: Plan, batch: Batch, hidden: Tensor
    ) -> list[QueuedPromptLogprobs]:
        model = self._step.model
        return list(all_prompt_logprobs(model, plan, batch, hidden, find_logprobs))

    def _order(self, requests: list[Request]) -> Tensor:
        rows = np.array([request.row for request in requests], dtype=np.int32)
        return send(rows, self._step.model.device)

    def _sample_special(self, requests: list[Request], outputs: Outputs) -> None:
        """Sample again for requests whose sampling parameters don't fit into the table of rows.

        Their tokens are overwritten in ``outputs`` and in the table.
        """
        special = [i for i, request in enumerate(requests) if not needs_only_numbers(request)]
        if special:
            special_requests = [requests[i] for i in special]
            chosen = self.choose_again(special, special_requests, outputs)
            self._step.table.note_tokens(self._order(special_requests), chosen)

    def choose_again(
        self, special: list[int], rows: Sequence[SamplingRow], outputs: Outputs
    ) -> Tensor:
        """Sample some rows of outputs again, by all rules of their requests.

        Args:
            special: indices of these rows.
            rows: what they ask for.
            outputs: logits, and the tokens to overwrite.

        Returns:
            The tokens, int64.
        """
        index = send(np.array(special), self._step.model.device)
        chosen = choose(outputs.logits[index].float(), rows)
        outputs.tokens[index] = chosen
        return chosen

    def _asked_logprobs(self, requests: list[Request]) -> AskedLogprobs | None:
        """Return what the requests ask for: often the same as in the step before."""
        if requests != self._last_asking[0]:
            wanted = [request.params.asked_logprobs for request in requests]
            model = self._step.model
            asked = AskedLogprobs.of(wanted, model.decoder.vocab_size, model.device)
            self._last_asking = requests, asked
        return self._last_asking[1]
