"""The runner of steps with guesses, on a CPU."""

import torch
from torch import Tensor

from minimal_vllm.runner.interface import CachedModel
from minimal_vllm.runner.plain import Landed, PlainRunner
from minimal_vllm.sampling.sampler import Sampled, Sampler
from minimal_vllm.speculation.draft_model import DraftModel
from minimal_vllm.speculation.rows import accept, sampling_rows
from minimal_vllm.step.plan import Plan


class SpeculatingRunner(PlainRunner):
    """Runner that samples at the place of each guess, and keeps the guesses that hold.

    Each place has the random number that it has without guesses, so the tokens are the same.

    Args:
        model: decoder, attention and KV cache.
        sampler: function that samples tokens from logits.
        draft: model that guesses. None: the plan has the guesses already.
    """

    def __init__(self, model: CachedModel, sampler: Sampler, draft: DraftModel | None) -> None:
        super().__init__(model, sampler)
        self._draft = draft

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Landed:
        """Let the draft model guess, if there is one, and compute the whole step."""
        if self._draft is not None:
            guesses = self._draft.propose(plan)
            for entry, tokens in zip(plan.scheduled, guesses, strict=True):
                entry.guesses = tokens
        return super().launch(plan)

    def sample(self, logits: Tensor, plan: Plan) -> Sampled:
        """Sample the tokens of a step from its logits, several for a request with guesses."""
        return accept(plan, self.sampler(logits, sampling_rows(plan)))
