"""The tokens in a draft model's cache, and those that it computes to guess. No torch here.

The cache has as many blocks as the large model's, and the same block tables: a block holds the keys
and values of the same tokens in both. A draft model computes nothing for steps without guesses. So
a block may be less full in its cache, and a request that guesses again first catches up.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from minimal_vllm.step.batch import Int32Array
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import Request


@dataclass(slots=True)
class Draft:
    """The guesses for one request in a step."""

    entry: ScheduledRequest
    count: int
    """Number of guesses that are asked for."""
    guesses: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Position after the last known token that the step computes."""
        return self.entry.start + self.entry.num_new - self.count


class DraftCache:
    """Keeps how full each block is in a draft model's cache.

    Args:
        num_blocks: number of blocks in the pool.
        block_size: number of tokens in a block.
        num_groups: number of groups of layers of the large model; the first has no window.
        max_step_tokens: maximum number of tokens that are computed at once.
    """

    keeps_guesses = True
    """Whether what was computed for a guess is right if the guess is."""
    places_behind = 0
    """Number of places from a token back to what is kept of it."""

    def __init__(
        self, num_blocks: int, block_size: int, num_groups: int, max_step_tokens: int
    ) -> None:
        self._block_size = block_size
        self._num_groups = num_groups
        self._max_step_tokens = max_step_tokens
        self._filled = array("q", bytes(8 * num_blocks))
        """Number of tokens of each block, the first ones, that are in the cache."""
        self._filled_of = np.frombuffer(self._filled, dtype=np.int64)
        """View of that memory, for looking up many blocks at once."""

    def begin(self, plan: Plan) -> list[Draft]:
        """Return a draft for each scheduled request, of as many guesses as the plan has places for.

        The keys in new blocks are forgotten, and so are those of the tokens that the step computes.
        If a step with guesses still runs, the keys of its guesses are forgotten too. Those of all
        known tokens are in the cache then, because they were computed to guess for that step.
        """
        for entry in plan.scheduled:
            for block in entry.new_blocks:
                self._filled[block] = 0
            if entry.follows_guesses:
                self._note_known(entry.request)
            if self.keeps_guesses:
                self._forget_wrong(entry)
        return [Draft(entry, len(entry.guesses)) for entry in plan.scheduled]

    def passes(self, drafts: list[Draft]) -> Iterator[list[ScheduledRequest]]:
        """Yield the tokens that each pass of the draft model computes.

        Before asking for the next pass, the caller appends a guess to the draft of each request
        that asked for logits in the last one.
        """
        guessing = [draft for draft in drafts if draft.count]
        behind = [self._catch_up(draft) for draft in guessing]
        yield from in_batches(behind, self._max_step_tokens)
        for place in range(1, max((draft.count for draft in guessing), default=0)):
            yield [self._go_on(draft) for draft in guessing if place < draft.count]

    def _note_known(self, request: Request) -> None:
        """Note that all known tokens are in the cache, of which at most a block and one are new."""
        end = request.num_tokens - self.places_behind
        self._fill(request, max(end - self._block_size - 1, 0), end)

    def _forget_wrong(self, entry: ScheduledRequest) -> None:
        """Forget guesses, of which some may have been wrong."""
        request = entry.request
        first = request.num_tokens if entry.follows_guesses else entry.start
        index, offset = divmod(first, self._block_size)
        for block in request.block_table[index * self._num_groups :: self._num_groups]:
            self._filled[block] = min(self._filled[block], offset)
            offset = 0

    def _blocks_of(self, request: Request) -> Int32Array:
        """Return the blocks that the request has in the first group of layers."""
        return np.frombuffer(request.block_table, dtype=np.int32)[:: self._num_groups]

    def _first_missing(self, request: Request, end: int) -> int:
        """Return the first of some places that is not in the cache.

        Blocks of a prefix may come from several requests, so the gap may be anywhere.
        """
        blocks = self._blocks_of(request)[: -(-end // self._block_size)]
        filled = self._filled_of[blocks]
        gaps = np.flatnonzero(filled < self._block_size)
        if not len(gaps):
            return end
        return min(int(gaps[0]) * self._block_size + int(filled[gaps[0]]), end)

    def _fill(self, request: Request, start: int, end: int) -> None:
        blocks = self._blocks_of(request)
        last, offset = divmod(end - 1, self._block_size)
        self._filled_of[blocks[start // self._block_size : last]] = self._block_size
        self._filled_of[blocks[last]] = offset + 1

    def _catch_up(self, draft: Draft) -> ScheduledRequest:
        """Return the request's last known tokens, from the first that is not in the cache."""
        request, behind = draft.entry.request, self.places_behind
        end = draft.end - behind
        start = min(self._first_missing(request, end), end - 1)
        self._fill(request, start, end)
        return ScheduledRequest(request, start + behind, end - start, num_logits=1)

    def _go_on(self, draft: Draft) -> ScheduledRequest:
        """Return the newest guess, as a token to compute."""
        request, position = draft.entry.request, draft.end + len(draft.guesses) - 1
        if self.keeps_guesses:
            self._fill(request, position, position + 1)
        return ScheduledRequest(request, position, 1, num_logits=1, guesses=draft.guesses[-1:])


def in_batches(
    entries: Iterable[ScheduledRequest], max_step_tokens: int
) -> Iterator[list[ScheduledRequest]]:
    """Divide tokens to compute into batches of at most ``max_step_tokens``, in order.

    A request that is divided gives logits in its last batch only.
    """
    batch: list[ScheduledRequest] = []
    room = max_step_tokens
    for entry in entries:
        start, end = entry.start, entry.start + entry.num_new
        while start < end:
            count = min(end - start, room)
            num_logits = entry.num_logits if start + count == end else 0
            batch.append(ScheduledRequest(entry.request, start, count, num_logits))
            start, room = start + count, room - count
            if not room:
                yield batch
                batch, room = [], max_step_tokens
    if batch:
        yield batch
