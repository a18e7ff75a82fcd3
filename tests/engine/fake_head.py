"""An EAGLE-3 head of the fake model, whose cache is checked whenever it guesses."""

import numpy as np

from minimal_vllm.engine.alternating_scheduler import AlternatingScheduler
from minimal_vllm.engine.speculating_scheduler import SpeculatingScheduler
from minimal_vllm.speculation.eagle_cache import EagleCache
from minimal_vllm.speculation.interface import EaglePlaceholders
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
        self.cache = EagleCache(num_blocks, block_size, len(windows), max_step_tokens=7)
        self.states, self.keys = (np.full(num_blocks * block_size, GARBAGE) for _ in range(2))
        self.num_guessed = 0

    def _run(self, plan):
        drafts = self.cache.begin(plan)
        guessing = [draft for draft in drafts if draft.count]
        if any(draft.entry.follows_guesses for draft in guessing):
            for draft in guessing:
                self._follow(draft)
        else:
            of_request = {draft.entry.request: draft for draft in drafts}
            for entries in self.cache.passes(drafts):
                for entry in entries:
                    self._compute(entry, of_request[entry.request])
        for draft in drafts:
            draft.entry.guesses = draft.guesses
        texts = [[*self._known(entry), *entry.guesses] for entry in plan.scheduled]
        starts = [self._located(entry).start for entry in plan.scheduled]
        result = super()._run(plan)
        for entry, text, start in zip(plan.scheduled, texts, starts, strict=True):
            prefixes = fingerprints(entry.request.cache_salt, tuple(text))
            for position in range(start, start + entry.num_new):
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
            self._check_keys(request, tuple(request.token_ids[: draft.end]))
        self._guess(draft, request.token_ids[: draft.end])

    def _follow(self, draft):
        """As on a GPU: compute all places of the step in flight, of which only some are kept."""
        entry, request = draft.entry, draft.entry.request
        text = self._known(entry)
        prefixes = fingerprints(request.cache_salt, text)
        num_kept = len(self.sampled[request])
        first = len(text) - 1 - num_kept
        for place in range(request.num_pending_tokens - entry.num_logits):
            slot = self._slot(request, first + place)
            self.keys[slot] = SPOILED
            if place < num_kept:
                assert self.states[slot] == prefixes[first + place], "not what the model computed"
                self.keys[slot] = prefixes[first + place + 1]
        self._check_keys(request, text)
        self._guess(draft, text)
        while len(draft.guesses) < draft.count:
            self.keys[self._slot(request, len(text) + len(draft.guesses) - 2)] = SPOILED
            self._guess(draft, text)

    def _guess(self, draft, text):
        """Guess what follows a text, and the guesses behind it."""
        request, tokens = draft.entry.request, [*text, *draft.guesses]
        token = next_token(request.cache_salt, tokens, request.seed)
        is_right = sum(tokens) % 3 > 0 and token != EOS
        draft.guesses.append(token if is_right else (token + 1) % VOCAB_SIZE)
        self.num_guessed += 1

    def _check_keys(self, request, text):
        """The last key of a block that is shared may know another token that follows."""
        prefixes = fingerprints(request.cache_salt, text)
        for position in range(1, len(text)):
            key = self.keys[self._slot(request, position - 1)]
            if position % self.block_size:
                assert key == prefixes[position]
            else:
                assert key not in (GARBAGE, SPOILED)


def head_scheduler(config, pool):
    """A scheduler whose guesses come from a head."""
    return SpeculatingScheduler(
        config, pool, EaglePlaceholders(), 3, in_passes=True, clock=lambda: 0.0
    )


def following_head_scheduler(config, pool):
    """The same on a GPU, where guesses may follow guesses in flight."""
    options = {"in_passes": True, "may_follow": True, "clock": lambda: 0.0}
    return AlternatingScheduler(config, pool, EaglePlaceholders(), 3, max_step_tokens=9, **options)
