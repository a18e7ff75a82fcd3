"""The plain runner, for any device. It runs on CPUs, and is the reference for the GPU's runner."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minimal_vllm.device.transfer import send
from minimal_vllm.runner.interface import CachedModel, StepResult
from minimal_vllm.runner.prompt_logprobs import all_prompt_logprobs
from minimal_vllm.runner.threads import StepThreads
from minimal_vllm.sampling.sampler import Sampled, Sampler, sample
from minimal_vllm.step.batch import Batch, build_batches
from minimal_vllm.step.plan import Plan


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
        self._threads = StepThreads(model)
        self.sampler = sampler

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Landed:
        """Compute the whole step before returning."""
        batches = build_batches(plan, self._model.block_size, self._model.groups.number)
        batch = batches[0]
        with self._threads.for_layers(len(batch.input_ids)):
            hidden, last = self._forward(batches)
        with self._threads.for_logits(len(last)):
            sampled = self.sample(self._model.decoder.logits(last), plan)
        prompt = all_prompt_logprobs(self._model, plan, batch, hidden)
        return Landed(StepResult(sampled, [part for each in prompt for part in each.wait()]))

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
