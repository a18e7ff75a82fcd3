"""An EAGLE-3 head that guesses what its model will sample, from the model's own hidden states.

It shares the model's block tables; ``eagle_cache`` says which tokens it computes.
"""

from dataclasses import replace

from torch import Tensor

from minimal_vllm.device.transfer import send
from minimal_vllm.model.eagle import EagleHead
from minimal_vllm.runner.interface import CachedModel
from minimal_vllm.speculation.draft_model import DraftModel
from minimal_vllm.speculation.eagle_cache import EagleCache
from minimal_vllm.step.plan import ScheduledRequest


class EagleModel(DraftModel):
    """Guesses with a head; see ``DraftModel``, and ``EaglePlaceholders`` for when it guesses.

    Args:
        head: the head.
        model: the head, with its attention and cache.
        num_groups: see ``DraftModel``.
        num_blocks: see ``DraftModel``.
        max_step_tokens: see ``DraftModel``.
    """

    make_cache = EagleCache

    def __init__(
        self,
        head: EagleHead,
        model: CachedModel,
        num_groups: int,
        num_blocks: int,
        max_step_tokens: int,
    ) -> None:
        super().__init__(model, num_groups, num_blocks, max_step_tokens)
        self.head = head

    def logits(self, entries: list[ScheduledRequest]) -> Tensor:
        """Compute tokens; see ``DraftModel.logits``.

        The head's states at the last tokens become what it reads of them, until the model computes
        these tokens in the same step.
        """
        batch = self.batch_of(entries)
        before = [replace(entry, start=entry.start - 1) for entry in entries]
        states = self.hidden(self.batch_of(before), batch.input_ids)
        last = send(batch.slot_mapping[batch.logit_indices], self.model.device)
        self.head.note_states(last, states)
        return self.head.logits(states)
