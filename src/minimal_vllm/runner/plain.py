"""One step on the device: batch in, sampled tokens out."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minimal_vllm.device.transfer import send
from minimal_vllm.model.step import Step
from minimal_vllm.runner.interface import ModelState, PromptLogprobs, StepResult
from minimal_vllm.sampling.logprobs import prompt_logprobs
from minimal_vllm.sampling.sampler import Sampler, sample
from minimal_vllm.step.batch import LOGITS_AT_A_TIME, Batch, build_batch
from minimal_vllm.step.plan import Plan


@dataclass(frozen=True, slots=True)
class DoneStep:
    """A step that was over when it was launched."""

    result: StepResult

    def wait(self) -> StepResult:
        """Nothing to wait for."""
        return self.result


class PlainRunner:
    """One step, from beginning to end: the CPU's runner, and the oracle of the GPU's."""

    def __init__(self, state: ModelState, sampler: Sampler = sample) -> None:
        self._state = state
        self._sample = sampler

    @torch.inference_mode()
    def launch(self, plan: Plan) -> DoneStep:
        """Compute the whole step."""
        batch = build_batch(plan, self._state.block_size)
        hidden, last = forward(self._state, batch, torch.from_numpy(batch.input_ids))
        logits = self._state.model.logits(last, self._state.backend.ops)
        sampled = self._sample(logits, batch.sampling)
        prompt = list(all_prompt_logprobs(self._state, plan, batch, hidden))
        return DoneStep(StepResult(sampled, prompt))


def forward(state: ModelState, batch: Batch, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the hidden states of a batch.

    Returns:
        Those that are wanted, ``[T, hidden]`` if they are for the logits of a whole prompt, and
        those of the tokens that are sampled from, ``[N, hidden]``.
    """
    backend = state.backend
    step = Step(backend.ops, backend.attention, backend.attention.prepare(batch))
    positions, last = send(batch.positions, state.device), send(batch.logit_indices, state.device)
    hidden = state.model.forward(
        input_ids.to(state.device),
        positions,
        state.caches,
        step,
        None if batch.wants_all_logits else last,
    )
    return hidden, hidden[last] if batch.wants_all_logits else hidden


def all_prompt_logprobs(
    state: ModelState, plan: Plan, batch: Batch, hidden: Tensor
) -> Iterator[PromptLogprobs]:
    """The prompt log-probabilities that are wanted of this step."""
    for row, entry in enumerate(plan.scheduled):
        wanted = entry.request.params.prompt_logprobs
        if wanted is None:
            continue
        # The token at position p is judged by the logits of position p - 1.
        last = min(entry.start + entry.num_new, entry.request.num_prompt_tokens - 1)
        for position in range(entry.start, last, LOGITS_AT_A_TIME):
            end = min(position + LOGITS_AT_A_TIME, last)
            first_row = int(batch.query_starts[row]) + position - entry.start
            rows = hidden[first_row : first_row + end - position]
            logits = state.model.logits(rows, state.backend.ops)
            next_tokens = entry.request.token_ids[position + 1 : end + 1]
            yield PromptLogprobs(
                entry.request, position + 1, prompt_logprobs(logits, next_tokens, wanted)
            )
