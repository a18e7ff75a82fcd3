"""Which tokens a head computes to guess."""

from array import array

from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.speculation.eagle_cache import EagleCache
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import Request


def plan_of(request, *, follows):
    """A plan with two guesses behind the last known token, or behind three pending ones."""
    last = request.num_tokens - 1 + 3 * follows
    entry = ScheduledRequest(request, last, 3, num_logits=3, guesses=[0, 0])
    entry.follows_guesses = follows
    return Plan([entry])


def test_after_guesses_that_were_launched_ahead_little_is_computed_again():
    """Whatever was kept until the last step but one is in the cache."""
    cache = EagleCache(num_blocks=40, block_size=4, num_groups=1, max_step_tokens=100)
    request = Request("a", array("i", range(20)), 20, SamplingParams(), 1)
    request.block_table.extend(range(40))
    (entries,) = list(cache.passes(cache.begin(plan_of(request, follows=False))))[:1]
    assert [(each.start, each.num_new) for each in entries] == [(1, 19)]
    for _ in range(20):
        cache.begin(plan_of(request, follows=True))
        request.token_ids.extend([5, 6, 7])
    drafts = cache.begin(plan_of(request, follows=False))
    entry = next(cache.passes(drafts))[0]
    assert entry.start + entry.num_new == request.num_tokens == 80
    assert entry.num_new == 3, "the tokens of the last step, whose guesses nothing followed"
