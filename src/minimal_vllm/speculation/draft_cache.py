"""The tokens in a draft model's cache, and those that it computes to guess. No torch here.

The cache has as many blocks as the large model's, and the same block tables: a block holds the keys
and values of the same tokens in both. A draft model computes nothing for steps without guesses. So
a block may be less full in its cache, and a request that guesses again first catches up.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

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
        most_tokens: maximum number of tokens that are computed at once.
    """

    def __init__(self, num_blocks: int, block_size: int, num_groups: int, most_tokens: int) -> None:
        self._block_size = block_size
        self._num_groups = num_groups
        self._most_tokens = most_tokens
        self._filled = [0] * num_blocks
        """Number of tokens of each block, the first ones, that are in the cache."""

    def begin(self, plan: Plan) -> list[Draft]:
        """Return a draft for each scheduled request, of as many guesses as the plan has places for.

        What is in new blocks is forgotten, and what the step computes (again). Behind a step with
        guesses that still runs, so is what that step computes; but of all known tokens the cache
        has the keys then, because that step guessed behind them.
        """
        for entry in plan.scheduled:
            for block in entry.new_blocks:
                self._filled[block] = 0
            request, first = entry.request, entry.start
            if entry.follows_guesses:  # of as many guesses as a block has tokens, at most
                first = request.num_tokens
                self._fill(request, max(first - self._block_size - 1, 0), first)
            self._forget_from(request, first)
        return [Draft(entry, len(entry.guesses)) for entry in plan.scheduled]

    def passes(self, drafts: list[Draft]) -> Iterator[list[ScheduledRequest]]:
        """Yield the tokens that each pass of the draft model computes.

        Whoever asks for the next pass has appended a guess to the draft of each request that asked
        for logits in the last one.
        """
        guessing = [draft for draft in drafts if draft.count]
        behind = [self._catch_up(draft) for draft in guessing]
        yield from in_batches(behind, self._most_tokens)
        for place in range(1, max((draft.count for draft in guessing), default=0)):
            yield [self._go_on(draft) for draft in guessing if place < draft.count]

    def _place_of(self, request: Request, position: int) -> tuple[int, int]:
        """Return the block that holds a token, and the token's offset there."""
        index, offset = divmod(position, self._block_size)
        return request.block_table[index * self._num_groups], offset

    def _has(self, request: Request, position: int) -> bool:
        block, offset = self._place_of(request, position)
        return self._filled[block] > offset

    def _fill(self, request: Request, start: int, end: int) -> None:
        """Note that tokens are in the cache, at least one; those before them in a block are too."""
        size = self._block_size
        for index in range(start // size, (end - 1) // size + 1):
            block = request.block_table[index * self._num_groups]
            self._filled[block] = min(end - index * size, size)

    def _forget_from(self, request: Request, position: int) -> None:
        index, offset = divmod(position, self._block_size)
        for block in request.block_table[index * self._num_groups :: self._num_groups]:
            self._filled[block] = min(self._filled[block], offset)
            offset = 0

    def _catch_up(self, draft: Draft) -> ScheduledRequest:
        """Return the request's last known tokens, from the first that is not in the cache."""
        request, start = draft.entry.request, draft.end - 1
        while start and not self._has(request, start - 1):
            start -= 1
        self._fill(request, start, draft.end)
        return ScheduledRequest(request, start, draft.end - start, num_logits=1)

    def _go_on(self, draft: Draft) -> ScheduledRequest:
        """Return the newest guess, as a token to compute."""
        request, position = draft.entry.request, draft.end + len(draft.guesses) - 1
        self._fill(request, position, position + 1)
        return ScheduledRequest(request, position, 1, num_logits=1, guesses=draft.guesses[-1:])


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
