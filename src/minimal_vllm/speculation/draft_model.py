"""A small model that guesses what the large one will sample.

It has a KV cache of its own, with as many blocks as the large model's, and the same block tables:
a block holds the keys and values of the same tokens in both. It computes nothing for steps without
guesses. So a block may be less full here, and a request that guesses again first catches up.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minimal_vllm.device.transfer import send
from minimal_vllm.runner.interface import CachedModel
from minimal_vllm.sampling.sampler import choose
from minimal_vllm.speculation.rows import guessed_row
from minimal_vllm.step.batch import Batch, build_batch
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
        most_tokens: maximum number of tokens that are computed at once.
    """

    def __init__(
        self, model: CachedModel, num_groups: int, num_blocks: int, most_tokens: int
    ) -> None:
        self._model = model
        self._num_groups = num_groups
        self._most_tokens = most_tokens
        self._filled = [0] * num_blocks
        """Number of tokens of each block, the first ones, that are in the cache here."""

    @torch.inference_mode()
    def propose(self, plan: Plan) -> list[list[int]]:
        """Return guesses for each scheduled request, as many as the plan has places for."""
        for entry in plan.scheduled:
            self._note_plan(entry)
        drafts = [_Draft(entry, len(entry.guesses)) for entry in plan.scheduled]
        guessing = {draft.entry.request: draft for draft in drafts if draft.count}
        behind = [self._catch_up(draft) for draft in guessing.values()]
        for entries in in_batches(behind, self._most_tokens):
            self._compute(entries, guessing)
        for place in range(1, max((draft.count for draft in drafts), default=0)):
            going_on = [draft for draft in guessing.values() if place < draft.count]
            self._compute([self._go_on(draft) for draft in going_on], guessing)
        return [draft.guesses for draft in drafts]

    def _note_plan(self, entry: ScheduledRequest) -> None:
        """Forget what is in new blocks, and where the step computes tokens (again)."""
        for block in entry.new_blocks:
            self._filled[block] = 0
        block, offset = self._place_of(entry.request, entry.start)
        self._filled[block] = min(self._filled[block], offset)

    def _place_of(self, request: Request, position: int) -> tuple[int, int]:
        """Return the block that holds a token, and the token's offset there."""
        index, offset = divmod(position, self._model.block_size)
        return request.block_table[index * self._num_groups], offset

    def _has(self, request: Request, position: int) -> bool:
        block, offset = self._place_of(request, position)
        return self._filled[block] > offset

    def _fill(self, request: Request, positions: range) -> None:
        for position in positions:
            block, offset = self._place_of(request, position)
            self._filled[block] = offset + 1

    def _catch_up(self, draft: "_Draft") -> ScheduledRequest:
        """Return the request's last known tokens, from the first that is not in the cache here."""
        request, start = draft.entry.request, draft.end - 1
        while start and not self._has(request, start - 1):
            start -= 1
        self._fill(request, range(start, draft.end))
        return ScheduledRequest(request, start, draft.end - start, num_logits=1)

    def _go_on(self, draft: "_Draft") -> ScheduledRequest:
        """Return the newest guess, as a token to compute."""
        request, position = draft.entry.request, draft.end + len(draft.guesses) - 1
        self._fill(request, range(position, position + 1))
        return ScheduledRequest(request, position, 1, num_logits=1, guesses=draft.guesses[-1:])

    def _compute(self, entries: list[ScheduledRequest], drafts: Mapping[Request, "_Draft"]) -> None:
        """Compute tokens, and append a guess to the draft of each request that asks for logits."""
        logits = self._logits(build_batch(Plan(entries), self._model.block_size, self._num_groups))
        asking = [drafts[entry.request] for entry in entries if entry.num_logits]
        rows = [guessed_row(draft.entry.request, draft.guesses) for draft in asking]
        tokens = choose(logits.float(), rows).clamp_(min=0)  # 0 where nothing can be sampled
        for draft, token in zip(asking, tokens.tolist(), strict=True):
            draft.guesses.append(token)

    def _logits(self, batch: Batch) -> Tensor:
        model = self._model
        hidden = model.decoder.forward(
            send(batch.input_ids, model.device),
            send(batch.positions, model.device),
            model.caches,
            model.groups.by_layer([model.attention.plan(batch)]),
            wanted=send(batch.logit_indices, model.device),
        )
        return model.decoder.logits(hidden)


@dataclass(slots=True)
class _Draft:
    """The guesses for one request in a step."""

    entry: ScheduledRequest
    count: int
    """Number of guesses that are asked for."""
    guesses: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Position after the last known token that the step computes."""
        return self.entry.start + self.entry.num_new - self.count


def in_batches(
    entries: Iterable[ScheduledRequest], most_tokens: int
) -> Iterator[list[ScheduledRequest]]:
    """Divide tokens to compute into batches of at most ``most_tokens``, in order.

    A request that is divided gives logits in its last batch only.
    """
    batch: list[ScheduledRequest] = []
    room = most_tokens
    for entry in entries:
        start, end = entry.start, entry.start + entry.num_new
        while start < end:
            count = min(end - start, room)
            num_logits = entry.num_logits if start + count == end else 0
            batch.append(ScheduledRequest(entry.request, start, count, num_logits))
            start, room = start + count, room - count
            if not room:
                yield batch
                batch, room = [], most_tokens
    if batch:
        yield batch
