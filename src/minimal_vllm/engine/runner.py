"""One step on the device: batch in, sampled tokens out."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minimal_vllm.attention.backend import Attention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.engine.batch import Batch, build_batch
from minimal_vllm.engine.request import Request
from minimal_vllm.engine.scheduler import Plan
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.outputs import TokenLogprobs
from minimal_vllm.sampling.logprobs import prompt_logprobs
from minimal_vllm.sampling.sampler import SamplerOutput, sample

LOGITS_AT_A_TIME = 256
"""Prompt positions whose logits exist at once: a row of them can be as long as 150,000."""


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """The log-probabilities of a prompt's tokens ``first_position …``, computed in this step."""

    request: Request
    first_position: int
    logprobs: list[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step computed."""

    sampled: SamplerOutput
    """One entry for each scheduled request that samples, in the plan's order."""
    prompt_logprobs: list[PromptLogprobs]


class Runner:
    """Holds the model and its KV cache, and runs plans on them."""

    def __init__(
        self,
        model: Decoder,
        attention: Attention,
        caches: list[LayerCache],
        block_size: int,
        device: torch.device,
    ) -> None:
        self._model = model
        self._attention = attention
        self._caches = caches
        self._block_size = block_size
        self._device = device

    @torch.inference_mode()
    def run(self, plan: Plan) -> StepResult:
        """Compute all scheduled tokens, and sample where a request's counter has caught up."""
        batch = build_batch(plan, self._block_size)
        hidden = self._forward(batch)
        logits = self._model.logits(hidden[torch.from_numpy(batch.logit_indices)])
        return StepResult(
            sampled=sample(logits, batch.sampling),
            prompt_logprobs=list(self._prompt_logprobs(plan, batch, hidden)),
        )

    def _forward(self, batch: Batch) -> Tensor:
        return self._model.forward(
            torch.from_numpy(batch.input_ids).to(self._device),
            torch.from_numpy(batch.positions).to(self._device),
            self._caches,
            self._attention.prepare(batch),
            self._attention,
        )

    def _prompt_logprobs(
        self, plan: Plan, batch: Batch, hidden: Tensor
    ) -> Iterator[PromptLogprobs]:
        for row, entry in enumerate(plan.scheduled):
            wanted = entry.request.params.prompt_logprobs
            if wanted is None:
                continue
            # The token at position p is judged by the logits of position p - 1.
            last = min(entry.start + entry.num_new, entry.request.num_prompt_tokens - 1)
            for position in range(entry.start, last, LOGITS_AT_A_TIME):
                end = min(position + LOGITS_AT_A_TIME, last)
                first_row = int(batch.query_starts[row]) + position - entry.start
                logits = self._model.logits(hidden[first_row : first_row + end - position])
                next_tokens = entry.request.token_ids[position + 1 : end + 1]
                yield PromptLogprobs(
                    entry.request, position + 1, prompt_logprobs(logits, next_tokens, wanted)
                )
