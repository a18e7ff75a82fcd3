"""Running steps on a GPU without waiting for them.

A step is only *launched*: its work is queued on the GPU, and its tokens are fetched once the next
step is queued too. Last tokens, positions and block tables stay on the GPU (see ``table``), so that
the next step can be launched before the CPU knows which tokens this one samples. Most steps are
replayed as CUDA graphs. The largest steps are launched kernel by kernel. So is what only some
requests ask for, after the rest of their step: rules that change logits, and log-probabilities.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.device.transfer import Fetch, send
from minimal_vllm.runner.graphs import Graphs
from minimal_vllm.runner.interface import Flight, StepResult
from minimal_vllm.runner.prompt_logprobs import QueuedPromptLogprobs, all_prompt_logprobs
from minimal_vllm.runner.step import GpuStep, Outputs
from minimal_vllm.sampling.logprobs import QueuedLogprobs, top_logprobs
from minimal_vllm.sampling.row import NO_TOKEN, SamplingRow, needs_only_numbers
from minimal_vllm.sampling.sampler import Sampled, choose
from minimal_vllm.step.batch import build_batches
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request

if TYPE_CHECKING:
    from minimal_vllm.outputs import TokenLogprobs


@dataclass(frozen=True, slots=True)
class QueuedFlight:
    """Step that is queued on the GPU; see ``Flight``."""

    tokens: Fetch
    asking: list[int]
    """Indices of the requests that ask for log-probabilities."""
    logprobs: QueuedLogprobs | None
    """Log-probabilities of these requests' tokens; None if there are no such requests."""
    prompt_logprobs: list[QueuedPromptLogprobs]

    def wait(self) -> StepResult:
        """Wait until everything has been copied to the CPU, and return the step's result."""
        token_ids = self.tokens.wait()
        logprobs: list[TokenLogprobs | None] = [None] * len(token_ids)
        if self.logprobs is not None:
            for index, entry in zip(self.asking, self.logprobs.wait(), strict=True):
                logprobs[index] = entry if token_ids[index] != NO_TOKEN else None
        prompt = [each.wait() for each in self.prompt_logprobs]
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

    def prepare_more(self) -> Iterator[None]:
        """Record the graphs that are not recorded yet, one by one; see ``PutsOff``."""
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
        asking = [i for i, each in enumerate(requests) if each.params.asked_logprobs is not None]
        logprobs = self._find_logprobs(requests, asking, outputs) if asking else None
        return QueuedFlight(Fetch(outputs.tokens), asking, logprobs, prompt_logprobs)

    def _launch_mixed(self, plan: Plan) -> tuple[Outputs, list[QueuedPromptLogprobs]]:
        """Launch a step with requests that don't decode, or any step if there are no graphs."""
        step = self._step
        batches = build_batches(plan, step.model.block_size, step.model.groups.number)
        batch = batches[0]
        if self._graphs:
            self._graphs.forget_order()
            if self._graphs.fits(batch):
                outputs = self._graphs.mixed(plan, batch)
                hidden = self._graphs.hidden
                return outputs, list(all_prompt_logprobs(step.model, plan, batch, hidden))
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

    def _find_logprobs(
        self, requests: list[Request], asking: list[int], outputs: Outputs
    ) -> QueuedLogprobs:
        """Find the log-probabilities that the requests ``asking`` want, before any sampling rule.

        The GPU computes them after the step. The CPU doesn't wait for them here.
        """
        logits, tokens = outputs.logits, outputs.tokens
        if len(asking) < len(requests):
            index = send(np.array(asking), self._step.model.device)
            logits, tokens = logits[index], tokens[index]
        wanted = [requests[i].params.asked_logprobs or 0 for i in asking]
        return top_logprobs(logits.float().log_softmax(dim=-1), tokens, wanted)
