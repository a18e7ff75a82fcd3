"""Log-probabilities of prompts, for the requests that ask for them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from minimal_vllm.device.transfer import send
from minimal_vllm.runner.interface import CachedModel, PromptLogprobs
from minimal_vllm.sampling.logprobs import QueuedLogprobs, top_logprobs
from minimal_vllm.step.batch import LOGITS_AT_A_TIME, Batch
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request


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
