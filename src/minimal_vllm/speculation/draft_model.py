"""A small model that guesses what the large one will sample.

It shares the large model's block tables; ``draft_cache`` says which tokens it computes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from minimal_vllm.device.transfer import send
from minimal_vllm.runner.interface import CachedModel
from minimal_vllm.sampling.sampler import choose
from minimal_vllm.speculation.draft_cache import Draft, DraftCache
from minimal_vllm.speculation.rows import guessed_row
from minimal_vllm.step.batch import Batch, IntArray, build_batch
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import Request


class DraftModel:
    """Guesses with a small model.

    It samples with the random number that the large model will sample with at the same place. The
    more similar the two distributions are, the more often both choose the same token.

    Args:
        model: the small model, with one group of layers and without windows.
        num_groups: number of groups of layers of the large model; the first has no window.
        num_blocks: number of blocks in the pool.
        max_step_tokens: maximum number of tokens that are computed at once.
    """

    make_cache = DraftCache

    def __init__(
        self, model: CachedModel, num_groups: int, num_blocks: int, max_step_tokens: int
    ) -> None:
        self.model = model
        self.num_groups = num_groups
        self.cache = self.make_cache(num_blocks, model.block_size, num_groups, max_step_tokens)

    @torch.inference_mode()
    def propose(self, plan: Plan) -> list[list[int]]:
        """Return guesses for each scheduled request, as many as the plan has places for."""
        drafts = self.cache.begin(plan)
        of_request = {draft.entry.request: draft for draft in drafts}
        for entries in self.cache.passes(drafts):
            self._compute(entries, of_request)
        return [draft.guesses for draft in drafts]

    def _compute(self, entries: list[ScheduledRequest], drafts: Mapping[Request, Draft]) -> None:
        """Compute tokens, and append a guess to the draft of each request that asks for logits."""
        logits = self.logits(entries)
        asking = [drafts[entry.request] for entry in entries if entry.num_logits]
        rows = [guessed_row(draft.entry.request, draft.guesses) for draft in asking]
        tokens = choose(logits.float(), rows).clamp_(min=0)  # 0 where nothing can be sampled
        for draft, token in zip(asking, tokens.tolist(), strict=True):
            draft.guesses.append(token)

    def logits(self, entries: list[ScheduledRequest]) -> Tensor:
        """Compute tokens, and return the logits of those that ask for them, ``[N, V]``."""
        batch = self.batch_of(entries)
        return self.model.decoder.logits(self.hidden(batch, batch.input_ids))

    def batch_of(self, entries: list[ScheduledRequest]) -> Batch:
        """Lay out tokens as arrays."""
        return build_batch(Plan(entries), self.model.block_size, self.num_groups)

    def hidden(self, batch: Batch, input_ids: IntArray) -> Tensor:
        """Compute the hidden states of the tokens that ask for logits, ``[N, hidden]``.

        Args:
            batch: places of the tokens.
            input_ids: ``[T]``: the tokens.
        """
        model = self.model
        return model.decoder.forward(
            send(input_ids, model.device),
            send(batch.positions, model.device),
            model.caches,
            model.groups.by_layer([model.attention.plan(batch)]),
            wanted=send(batch.logit_indices, model.device),
        )
