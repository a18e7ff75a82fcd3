"""The plain runner, for any device. It runs on CPUs, and is the reference for the GPU's runner."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.device.transfer import send
from minimal_vllm.runner.interface import CachedModel, PromptLogprobs, StepResult
from minimal_vllm.sampling.logprobs import QueuedLogprobs, top_logprobs
from minimal_vllm.sampling.sampler import Sampled, Sampler, sample
from minimal_vllm.step.batch import LOGITS_AT_A_TIME, Batch, build_batches
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request


@dataclass(frozen=True, slots=True)
class Landed:
    """Step that finished during its launch; see ``Flight``."""

    result: StepResult

    def wait(self) -> StepResult:
        """Return the result without waiting."""
        return self.result


class PlainRunner:
    """Runner that computes each step during its launch; see ``Runner``.

    Args:
        model: decoder, attention and KV cache.
        sampler: function that samples tokens from logits.
    """

    def __init__(self, model: CachedModel, sampler: Sampler = sample) -> None:
        self._model = model
        self.sampler = sampler

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Landed:
        """Compute the whole step before returning."""
        batches = build_batches(plan, self._model.block_size, self._model.groups.number)
        batch = batches[0]
        hidden, last = self._forward(batches)
        sampled = self.sample(self._model.decoder.logits(last), plan)
        prompt = all_prompt_logprobs(self._model, plan, batch, hidden)
        return Landed(StepResult(sampled, [each.wait() for each in prompt]))

    def sample(self, logits: Tensor, plan: Plan) -> Sampled:
        """Sample the tokens of a step from its logits, ``[N, V]``."""
        return self.sampler(logits, plan.sampling)

    def _forward(self, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """Compute a step's hidden states, given the batch of each group of layers.

        Returns:
            Two tensors. The second has the hidden states to sample from, ``[N, hidden]``. The first
            has those of all tokens, ``[T, hidden]``, if a request asks for log-probabilities of its
            prompt; otherwise it is the same as the second.
        """
        model, batch = self._model, batches[0]
        last = send(batch.logit_indices, model.device)
        hidden = model.decoder.forward(
            send(batch.input_ids, model.device),
            send(batch.positions, model.device),
            model.caches,
            model.groups.by_layer([model.attention.plan(each) for each in batches]),
            wanted=None if batch.wants_all_logits else last,
        )
        return hidden, hidden[last] if batch.wants_all_logits else hidden


@dataclass(frozen=True, slots=True)
class QueuedPromptLogprobs:
    """Log-probabilities of consecutive tokens of a prompt, on their way to the CPU."""

    request: Request
    first_position: int
    logprobs: QueuedLogprobs

    def wait(self) -> PromptLogprobs:
        """Wait until they have arrived."""
        return PromptLogprobs(self.request, self.first_position, self.logprobs.wait())


def all_prompt_logprobs(
    model: CachedModel, plan: Plan, batch: Batch, hidden: Tensor
) -> Iterator[QueuedPromptLogprobs]:
    """Compute the prompt log-probabilities that a step's requests ask for.

    Args:
        model: model that computes the logits.
        plan: plan of the step.
        batch: batch of the step.
        hidden: ``[T, hidden]``: hidden states of all tokens, if any request asks for them.
    """
    for row, entry in enumerate(plan.scheduled):
        request, wanted = entry.request, entry.request.params.prompt_logprobs
        if wanted is None:
            continue
        # The logits of position p - 1 score the token at position p.
        last = min(entry.start + entry.num_new, request.num_prompt_tokens - 1)
        for position in range(entry.start, last, LOGITS_AT_A_TIME):
            count = min(LOGITS_AT_A_TIME, last - position)
            first_row = int(batch.query_starts[row]) + position - entry.start
            logits = model.decoder.logits(hidden[first_row : first_row + count])
            next_tokens = request.token_ids[position + 1 : position + 1 + count]
            chosen = send(np.array(next_tokens, dtype=np.int64), model.device)
            logprobs = logits.float().log_softmax(dim=-1)
            yield QueuedPromptLogprobs(
                request, position + 1, top_logprobs(logprobs, chosen, [wanted] * count)
            )
