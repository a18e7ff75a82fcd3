"""The tokens that an EAGLE-3 head has keys for, and those that it computes to guess. No torch here.

It works as a draft model's cache does, one place behind: a head computes a token together with the
hidden state of the token before, and keeps its key at the place of that one. So the first token of
a request has no key.

The last key of a block depends on the first token of the next one. Requests that share the block
may go on differently, and then all but the one that computed the key have a slightly wrong one.
That can only make a guess wrong. (To share all blocks but the last, as vLLM does, would compute the
model again for up to a block of tokens in each request.)
"""

from minimal_vllm.speculation.draft_cache import DraftCache


class EagleCache(DraftCache):
    """Keeps how full each block is in a head's cache; see ``DraftCache``.

    Keys of guesses are not kept: they were computed from the head's own states, and there are
    better ones once the model has computed the tokens.
    """

    keeps_guesses = False
    places_behind = 1
