"""A draft model on a GPU, whose passes are queued without waiting for each other's guesses."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from minimal_vllm.device.transfer import Fetch, send
from minimal_vllm.runner.guesses import DraftSteps
from minimal_vllm.runner.inputs import PENDING
from minimal_vllm.sampling.sampler import choose
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.speculation.draft_cache import Draft
from minimal_vllm.speculation.draft_model import DraftModel
from minimal_vllm.speculation.rows import guessed_row
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import Request

WARM_UP_LENGTHS = (2, 40)
"""Lengths of prompts that are computed at start, so that the kernels for them are compiled."""


@dataclass(frozen=True, slots=True)
class QueuedGuesses:
    """Guesses that are in the table of rows, and on their way to the CPU."""

    drafts: Sequence[Draft]
    """Drafts of the requests that get guesses."""
    guesses: Fetch

    def wait(self) -> None:
        """Wait for the guesses, and enter them into the plan."""
        for draft, tokens in zip(self.drafts, self.guesses.wait(), strict=True):
            draft.entry.guesses = tokens[: draft.count]


class CudaDraftModel:
    """Guesses with a small model on a GPU; see ``DraftModel``.

    It samples as the large model does, but without the rules that don't fit into the table of rows.

    Args:
        draft: the model, and what is in its cache.
        steps: its steps.
    """

    def __init__(self, draft: DraftModel, steps: DraftSteps) -> None:
        self._draft = draft
        self._steps = steps

    def note(self, plan: Plan) -> None:
        """Take note of a step without guesses."""
        self._draft.cache.begin(plan)

    def guess(self, plan: Plan) -> QueuedGuesses:
        """Queue guesses for each scheduled request, as many as the plan has places for.

        The table of rows has the plan's changes already. Either all requests that get guesses had
        some in the step that is in flight, or none had.
        """
        drafts = self._draft.cache.begin(plan)
        guessing = [draft for draft in drafts if draft.count]
        if any(draft.entry.follows_guesses for draft in guessing):
            self._go_on(guessing)
        else:
            self._begin(drafts)
        rows = send(_rows([draft.entry for draft in guessing]), self._draft.model.device)
        return QueuedGuesses(guessing, Fetch(self._steps.table.guesses(rows)))

    def _begin(self, drafts: list[Draft]) -> None:
        """Guess behind known tokens."""
        of_request = {draft.entry.request: draft for draft in drafts}
        for entries in self._draft.cache.passes(drafts):
            asking = [of_request[entry.request] for entry in entries if entry.num_logits]
            if self._steps.fits(sum(entry.num_new for entry in entries)):
                self._replay(entries, of_request)
            else:
                self._catch_up(entries, asking)
            for draft in asking:
                draft.guesses.append(PENDING)

    def _go_on(self, guessing: Sequence[Draft]) -> None:
        """Guess behind the tokens that the step in flight keeps; only the GPU knows how many."""
        entries = [draft.entry for draft in guessing]
        num_sampled = [each.request.num_pending_tokens - each.num_logits for each in entries]
        self._steps.follow(_rows(entries), np.array(num_sampled))
        for place in range(1, max(draft.count for draft in guessing)):
            rows = _rows([draft.entry for draft in guessing if draft.count > place])
            starts, num_places = np.full_like(rows, place), np.ones_like(rows)
            self._steps.compute(rows, starts, num_places, [PENDING] * len(rows))

    def _replay(self, entries: Sequence[ScheduledRequest], drafts: Mapping[Request, Draft]) -> None:
        """Compute a few tokens of each request, and guess what follows."""
        starts, tokens = [], []
        for entry in entries:
            last = drafts[entry.request].end - 1  # the GPU has it, and the guesses behind it
            starts.append(entry.start - last)
            known = entry.request.token_ids[entry.start : min(last, entry.start + entry.num_new)]
            tokens += [*known, *[PENDING] * (entry.num_new - len(known))]
        num_places = np.array([entry.num_new for entry in entries])
        self._steps.compute(_rows(entries), np.array(starts), num_places, tokens)

    def _catch_up(self, entries: list[ScheduledRequest], asking: Sequence[Draft]) -> None:
        """Compute many known tokens, and make the first guess of some requests."""
        draft, table = self._draft, self._steps.table
        logits = draft.logits(entries)
        if asking:
            tokens = choose(
                logits.float(), [guessed_row(each.entry.request, ()) for each in asking]
            )
            rows = send(_rows([each.entry for each in asking]), draft.model.device)
            table.note_guesses(rows, torch.zeros_like(rows), tokens)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compute some tokens, before the cache holds any."""
        for length in WARM_UP_LENGTHS:
            tokens = array("i", bytes(4 * (1 + length)))
            request = Request("", tokens, len(tokens), SamplingParams(), 0)
            num_blocks = -(-len(tokens) // self._draft.model.block_size) * self._draft.num_groups
            request.block_table.extend([0] * num_blocks)
            # From the second token on, since a head that reads hidden states begins there.
            self._catch_up([ScheduledRequest(request, 1, length, num_logits=1)], [])


def _rows(entries: Sequence[ScheduledRequest]) -> np.ndarray:
    return np.array([entry.request.row for entry in entries])
