"""An EAGLE-3 head of the fake model, whose cache is checked whenever it guesses."""

import numpy as np

from minimal_vllm.engine.speculating_scheduler import SpeculatingScheduler
from minimal_vllm.speculation.eagle_cache import EagleCache
from minimal_vllm.speculation.interface import EaglePlaces
from tests.engine.traffic import (
    EOS,
    GARBAGE,
    SPOILED,
    VOCAB_SIZE,
    FakeRunner,
    fingerprints,
    next_token,
)


class FakeHead(FakeRunner):
    """A model whose hidden states a fake EAGLE-3 head reads, to guess as ``FakeGuesser`` does.

    What the head reads of a token is the fingerprint of its prefix, and so is a key; a key also
    knows the token that follows. When the head guesses, all keys must be there, and must have been
    computed from what the model has computed, not from what was guessed.
    """

    def __init__(self, num_blocks, block_size, windows, runs_ahead):
        super().__init__(num_blocks, block_size, windows, runs_ahead)
        self.cache = EagleCache(num_blocks, block_size, len(windows), most_tokens=7)
        self.states, self.keys = (np.full(num_blocks * block_size, GARBAGE) for _ in range(2))
        self.num_guessed = 0

    def _run(self, plan):
        drafts = self.cache.begin(plan)
        of_request = {draft.entry.request: draft for draft in drafts}
        for entries in self.cache.passes(drafts):
            for entry in entries:
                self._compute(entry, of_request[entry.request])
        for draft in drafts:
            draft.entry.guesses = draft.guesses
        result = super()._run(plan)
        for entry in plan.scheduled:
            text = [*self._known(entry), *entry.guesses]
            prefixes = fingerprints(entry.request.cache_salt, tuple(text))
            for position in range(entry.start, entry.start + entry.num_new):
                self.states[self._slot(entry.request, position)] = prefixes[position]
        return result

    def _slot(self, request, position):
        block, offset = divmod(position, self.block_size)
        return request.block_table[block * len(self.windows)] * self.block_size + offset

    def _compute(self, entry, draft):
        request = entry.request
        prefixes = fingerprints(request.cache_salt, tuple(request.token_ids))
        for position in range(max(entry.start, 1), entry.start + entry.num_new):
            slot = self._slot(request, position - 1)
            if position < draft.end:
                assert self.states[slot] == prefixes[position - 1], "the model hasn't computed it"
                self.keys[slot] = prefixes[position]
            else:
                self.keys[slot] = SPOILED
        if not entry.num_logits:
            return
        if position < draft.end:
            self._check_keys(request, draft.end)
        tokens = [*request.token_ids[: draft.end], *draft.guesses]
        token = next_token(request.cache_salt, tokens, request.seed)
        is_right = sum(tokens) % 3 > 0 and token != EOS
        draft.guesses.append(token if is_right else (token + 1) % VOCAB_SIZE)
        self.num_guessed += 1

    def _check_keys(self, request, end):
        """The last key of a block that is shared may know another token that follows."""
        prefixes = fingerprints(request.cache_salt, tuple(request.token_ids))
        for position in range(1, end):
            key = self.keys[self._slot(request, position - 1)]
            if position % self.block_size:
                assert key == prefixes[position]
            else:
                assert key not in (GARBAGE, SPOILED)


def head_scheduler(config, pool):
    """A scheduler whose guesses come from a head."""
    return SpeculatingScheduler(config, pool, EaglePlaces(), 3, in_passes=True, clock=lambda: 0.0)
