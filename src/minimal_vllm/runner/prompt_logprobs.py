"""Log-probabilities of prompts, for the requests that ask for them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from minimal_vllm.device.transfer import Fetch, send
from minimal_vllm.outputs import FlatLogprobs
from minimal_vllm.runner.interface import CachedModel, PromptLogprobs
from minimal_vllm.sampling.logprobs import AskedLogprobs, find_logprobs
from minimal_vllm.step.batch import LOGITS_AT_A_TIME, Batch, IntArray
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request

Find = Callable[[Tensor, Tensor, AskedLogprobs], Tensor]
"""``sampling.logprobs.find_logprobs``, or its kernels."""


@dataclass(frozen=True, slots=True)
class PromptPart:
    """Consecutive tokens of a prompt that asks for log-probabilities."""

    request: Request
    first_position: int
    """Position of the first token."""
    first_row: int
    """Index of the token before it among all tokens of the step."""
    count: int
    """Number of tokens."""

    def tokens(self) -> IntArray:
        """Return the tokens' ids."""
        span = slice(self.first_position, self.first_position + self.count)
        return np.array(self.request.token_ids[span], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class QueuedPromptLogprobs:
    """Log-probabilities of parts of prompts, on their way to the CPU."""

    parts: list[PromptPart]
    asked: AskedLogprobs
    found: Fetch
    """See ``find_logprobs``; the rows are the parts' tokens."""

    def wait(self) -> Iterator[PromptLogprobs]:
        """Wait until they have arrived, and yield those of each part."""
        found, row = self.found.array(), 0
        for part in self.parts:
            width = self.asked.counts[row]
            rows = found[row : row + part.count, :, :width]
            ids, logprobs, ranks = (rows[:, column].tobytes() for column in range(3))
            known = FlatLogprobs(width, ids, logprobs, ranks)
            yield PromptLogprobs(part.request, part.first_position, known)
            row += part.count


def all_prompt_logprobs(
    model: CachedModel, plan: Plan, batch: Batch, hidden: Tensor, find: Find = find_logprobs
) -> Iterator[QueuedPromptLogprobs]:
    """Compute the prompt log-probabilities that a step's requests ask for, piece by piece.

    Args:
        model: model that computes the logits.
        plan: plan of the step.
        batch: batch of the step.
        hidden: ``[T, hidden]``: hidden states of all tokens, if any request asks for them.
        find: function that finds log-probabilities in logits.
    """
    for parts in _cut_prompts(plan, batch):
        rows = [np.arange(part.first_row, part.first_row + part.count) for part in parts]
        tokens = [part.tokens() for part in parts]
        wanted = [part.request.params.prompt_logprobs for part in parts for _ in range(part.count)]
        logits = model.decoder.logits(hidden[send(np.concatenate(rows), model.device)])
        asked = AskedLogprobs.of(wanted, logits.shape[1], model.device)
        if asked is not None:
            found = find(logits, send(np.concatenate(tokens), model.device), asked)
            yield QueuedPromptLogprobs(parts, asked, Fetch(found))


def _cut_prompts(plan: Plan, batch: Batch) -> Iterator[list[PromptPart]]:
    """Yield the parts of prompts whose log-probabilities are computed together.

    They have at most ``LOGITS_AT_A_TIME`` tokens. The logits at a position score the token behind.
    """
    parts: list[PromptPart] = []
    room = LOGITS_AT_A_TIME
    for entry, first_row in zip(plan.scheduled, batch.query_starts.tolist(), strict=False):
        if entry.request.params.prompt_logprobs is None:
            continue
        last = min(entry.start + entry.num_new, entry.request.num_prompt_tokens - 1)
        position = entry.start
        while position < last:
            count = min(room, last - position)
            row = first_row + position - entry.start
            parts.append(PromptPart(entry.request, position + 1, row, count))
            position += count
            room -= count
            if not room:
                yield parts
                parts, room = [], LOGITS_AT_A_TIME
    if parts:
        yield parts
