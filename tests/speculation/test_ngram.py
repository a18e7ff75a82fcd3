"""What followed the last tokens before is found, whatever the length of the text."""

import time
from array import array

from hypothesis import given
from hypothesis import strategies as st

from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.speculation.ngram import MAX_PLACES, NOWHERE, NgramGuesser, NgramIndex, follow
from minimal_vllm.step.plan import ScheduledRequest
from minimal_vllm.step.request import Request


def longest_match(tokens, shortest, longest):
    """The same by trying every place: the most recent of the longest matches."""
    places = []
    for place in range(shortest, len(tokens)):
        length = 0
        while length < min(place, longest) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        if length >= shortest:
            places.append((length, place))
    places = places[-MAX_PLACES:]
    return max(places)[1] if places else NOWHERE


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 3), st.integers(0, 3))
def test_a_growing_text_is_searched_as_if_from_scratch(tokens, shortest, more):
    index = NgramIndex(shortest, shortest + more)
    text = array("i")
    for token in tokens:
        text.append(token)
        index.extend(text)
        assert index.find(text) == longest_match(text.tolist(), shortest, shortest + more)


def test_many_tokens_may_be_added_at_once():
    index, text = NgramIndex(2, 4), array("i", [1, 2, 3, 1, 2])
    index.extend(text)
    assert index.find(text) == 2
    text.extend([3, 9, 1, 2])
    index.extend(text)
    assert index.find(text) == 5  # the most recent of two that match equally


def test_what_repeats_goes_on_repeating():
    text = array("i", [7, 1, 2, 1, 2])
    assert follow(text, 3, 5) == [1, 2, 1, 2, 1]
    assert follow(text, 1, 2) == [1, 2]


def entry_of(tokens):
    request = Request("a", array("i", tokens), len(tokens), SamplingParams(), arrival=0)
    return ScheduledRequest(request, len(tokens) - 1, 1, num_logits=1)


def test_a_request_that_is_forgotten_is_indexed_again():
    guesser, entry = NgramGuesser(2, 3), entry_of([1, 2, 3, 1, 2])
    assert guesser.propose([entry], [3]) == [[3, 1, 2]]
    guesser.forget(entry.request)
    guesser.forget(entry.request)
    assert guesser.propose([entry], [2]) == [[3, 1]]


def test_without_a_match_there_are_no_guesses():
    assert NgramGuesser(3, 3).propose([entry_of([1, 2, 3]), entry_of([1])], [4, 4]) == [[], []]


def lookup_seconds(length):
    """CPU time of a step's lookup, the smallest of many."""
    guesser, entry = NgramGuesser(3, 8), entry_of([each * each % 997 for each in range(length)])
    guesser.propose([entry], [5])
    times = []
    for step in range(300):
        entry.request.token_ids.append(step * step % 997)
        start = time.thread_time()
        guesser.propose([entry], [5])
        times.append(time.thread_time() - start)
    return min(times)


def test_a_lookup_takes_no_longer_in_a_long_text():
    short, long = lookup_seconds(500), lookup_seconds(32_000)
    assert long < 5 * short
    assert long < 100e-6  # measured: 5; the machine may be busy
