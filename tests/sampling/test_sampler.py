from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from minimal_vllm.outputs import FlatLogprobs
from minimal_vllm.sampling.sampler import NO_TOKEN, Sampled, sample
from tests.sampling.rows import plain_probabilities, row, tokens_of

INF = float("inf")


def random_logits(n, vocab_size, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, vocab_size, generator=generator) * scale


def a_bit_of_everything(vocab_size):
    """Rows that use every option, alone and together."""
    half = list(range(vocab_size // 2))
    return [
        row(temperature=0),
        row(seed=1),
        row(seed=2, temperature=0.3),
        row(seed=3, top_k=3),
        row(seed=4, top_p=0.5),
        row(seed=5, min_p=0.2),
        row(seed=6, top_k=vocab_size + 5, top_p=0.8, min_p=0.01, temperature=2.0),
        row(seed=7, top_k=7, top_p=0.7, output=[3, 4]),
        row(seed=8, allowed_token_ids=half, logit_bias={1: 3.0, 2: -100.0}),
        row(temperature=0, prompt=[1, 2], output=[5, 5, 6], repetition_penalty=1.5),
        row(seed=9, output=[5, 5, 6], presence_penalty=1.0, frequency_penalty=-0.5),
        row(seed=10, min_tokens=3, stop=[0, 1, 2], output=[4]),
        row(temperature=0, bad_words=[(5,), (3, 6)], output=[3], logprobs=2),
        row(seed=11, logprobs=-1, top_p=1e-9),
    ]


@pytest.mark.parametrize("vocab_size", [11, 1030, 5000])
def test_a_rows_result_does_not_depend_on_the_batch(vocab_size):
    rows = a_bit_of_everything(vocab_size)
    logits = random_logits(len(rows), vocab_size)
    together = sample(logits.clone(), rows)
    assert NO_TOKEN not in tokens_of(together)
    for i in range(len(rows)):
        alone = sample(logits[i : i + 1].clone(), rows[i : i + 1])
        assert tokens_of(alone) == tokens_of(together)[i : i + 1]
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(rows)).tolist()
        shuffled = sample(logits[order], [rows[i] for i in order])
        assert tokens_of(shuffled) == [tokens_of(together)[i] for i in order]
        assert [p is not None for p in shuffled.logprobs] == [i in (12, 13) for i in order]


FILTERS = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"top_k": 6, "top_p": 0.75},
    {"top_k": 8, "min_p": 0.05, "temperature": 1.3},
    {"top_p": 0.9, "min_p": 0.02},
    {"top_k": 10, "top_p": 0.95, "min_p": 0.01, "temperature": 0.8},
]


@pytest.mark.parametrize("params", FILTERS, ids=str)
def test_tokens_are_drawn_with_their_probabilities(params):
    # Seeds are fixed, so this passes or fails for good: a right sampler had a chance of 0.1 % to
    # fail when each of the cases was written.
    draws = 20_000
    logits = random_logits(1, 20, seed=3, scale=1.0)
    rows = [row(seed=seed, **params) for seed in range(draws)]
    counts = np.bincount(tokens_of(sample(logits.repeat(draws, 1), rows)), minlength=20)
    expected = plain_probabilities(logits[0], rows[0].params) * draws
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    assert chisquare(counts[possible], expected[possible]).pvalue > 1e-3


def test_the_tokens_of_one_request_are_drawn_with_their_probabilities_too():
    # One seed and a growing output, instead of many seeds.
    draws = 3_000
    logits = random_logits(1, 20, seed=4)
    rows = [row(seed=42, output=[1] * n) for n in range(draws)]
    counts = np.bincount(tokens_of(sample(logits.repeat(draws, 1), rows)), minlength=20)
    expected = plain_probabilities(logits[0], rows[0].params) * draws
    assert chisquare(counts, expected).pvalue > 1e-3


def test_a_seed_and_a_length_give_the_same_token_again_and_others_do_not():
    vocab_size = 1000
    logits = torch.zeros(1, vocab_size)

    def token(**options):
        return tokens_of(sample(logits.clone(), [row(**options)]))[0]

    assert token(seed=5) == token(seed=5) == token(seed=5, prompt=[1, 2, 3])
    assert len({token(seed=seed) for seed in range(50)}) > 40
    assert len({token(seed=5, output=[1] * n) for n in range(50)}) > 40


def test_greedy_takes_the_most_probable_and_the_first_of_equals():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.0, 2.0], [-INF, -5.0, -INF]])
    assert tokens_of(sample(logits, [row(temperature=0)] * 3)) == [1, 0, 1]


def test_top_k_of_one_is_greedy_even_among_equals():
    logits = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
    rows = [row(seed=seed, top_k=1) for seed in range(50)]
    assert set(tokens_of(sample(logits.repeat(50, 1), rows))) == {1}


@pytest.mark.parametrize("params", [{"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-4}])
def test_the_strictest_filters_keep_the_most_probable_token(params):
    logits = random_logits(1, 50)
    rows = [row(seed=seed, **params) for seed in range(50)]
    assert set(tokens_of(sample(logits.repeat(50, 1), rows))) == {int(logits.argmax())}


@pytest.mark.parametrize("params", [*FILTERS, {"temperature": 0}], ids=str)
def test_the_only_possible_token_is_taken(params):
    logits = torch.full((3, 700), -INF)
    for i, token in enumerate((0, 350, 699)):
        logits[i, token] = -7.0
    assert tokens_of(sample(logits, [row(seed=s, **params) for s in range(3)])) == [0, 350, 699]


def test_a_vocabulary_of_one_token():
    assert tokens_of(sample(torch.zeros(2, 1), [row(top_k=1), row(temperature=0)])) == [0, 0]


def test_no_rows_give_no_tokens():
    output = sample(torch.zeros(0, 5), [])
    assert (output.tokens, output.logprobs) == ([], [])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_dtype_is_sampled_as_if_it_were_float32(dtype):
    rows = a_bit_of_everything(100)
    logits = random_logits(len(rows), 100).to(dtype)
    expected = tokens_of(sample(logits.to(torch.float32, copy=True), rows))
    assert tokens_of(sample(logits.clone(), rows)) == expected


def test_large_logits_and_small_temperatures_do_not_overflow():
    logits = torch.tensor([[3e38, -3e38, 2.9e38], [-3e38, -3.1e38, -3.2e38]])
    assert tokens_of(sample(logits, [row(temperature=2e-5)] * 2)) == [0, 0]


@pytest.mark.parametrize("bad", [float("nan"), INF])
def test_a_row_with_broken_logits_is_reported_and_harms_no_other(bad):
    vocab_size = 600
    rows = a_bit_of_everything(vocab_size)
    logits = random_logits(len(rows), vocab_size)
    expected = sample(logits.clone(), rows)
    for i in range(len(rows)):
        if rows[i].params.allowed_token_ids is not None:
            continue  # forbids the broken token, and so is sound
        broken = logits.clone()
        broken[i, vocab_size - 1] = bad
        output = sample(broken, rows)
        assert tokens_of(output)[i] == NO_TOKEN
        assert output.logprobs[i] is None
        others = [j for j in range(len(rows)) if j != i]
        assert [tokens_of(output)[j] for j in others] == [tokens_of(expected)[j] for j in others]
        assert [output.logprobs[j] for j in others] == [expected.logprobs[j] for j in others]


def test_a_row_of_nothing_but_nan_is_survived_by_every_filter():
    logits = torch.full((len(FILTERS), 600), float("nan"))
    output = sample(logits, [row(**params) for params in FILTERS])
    assert tokens_of(output) == [NO_TOKEN] * len(FILTERS)


def test_a_row_whose_tokens_are_all_forbidden_is_reported():
    rows = [row(allowed_token_ids=[2], bad_words=[(2,)], temperature=t) for t in (0, 1)]
    assert tokens_of(sample(torch.zeros(2, 5), rows)) == [NO_TOKEN, NO_TOKEN]


def test_log_probabilities_are_those_of_the_untouched_logits():
    logits = random_logits(3, 30)
    raw = logits.log_softmax(-1)
    changed = {"logit_bias": {7: 100.0}, "repetition_penalty": 2.0, "prompt": [1, 2]}
    rows = [
        row(temperature=0, logprobs=1, **changed),
        row(temperature=0),
        row(temperature=0.5, top_k=1, logprobs=0, **changed),
    ]
    output = sample(logits, rows)
    assert tokens_of(output)[0] == tokens_of(output)[2] == 7
    assert output.logprobs[1] is None
    assert list(output.logprobs[0][0]) == [7, int(raw[0].argmax())]
    assert list(output.logprobs[2][0]) == [7]
    assert output.logprobs[2][0][7].logprob == pytest.approx(raw[2, 7].item())


@settings(deadline=None, max_examples=100)
@given(
    logits=st.lists(st.sampled_from([-INF, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=12),
    seed=st.integers(0, 2**64 - 1),
    params=st.sampled_from(FILTERS),
)
def test_only_possible_tokens_are_drawn_whatever_ties_there_are(logits, seed, params):
    if max(logits) == -INF:
        logits[0] = 0.0
    one = row(seed=seed, **params)
    (token,) = tokens_of(sample(torch.tensor([logits]), [one]))
    assert plain_probabilities(logits, one.params)[token] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_chooses_the_same_tokens_as_the_cpu():
    for vocab_size, scale in product((11, 5000), (0.5, 3.0)):
        rows = a_bit_of_everything(vocab_size)
        logits = random_logits(len(rows), vocab_size, scale=scale)
        on_gpu = sample(logits.cuda(), rows)
        assert tokens_of(on_gpu) == tokens_of(sample(logits, rows))


def test_a_row_without_a_token_gives_an_empty_list():
    known = [FlatLogprobs(1, [token], [-0.5], [1]) for token in (7, 8)]
    sampled = Sampled.one_each([7, NO_TOKEN, 0], [*known, None])
    assert list(map(list, sampled.tokens)) == [[7], [], [0]]
    assert sampled.logprobs == [known[0], None, None]


def test_a_custom_sampler_that_forgets_log_probabilities_is_told_what_to_return():
    with pytest.raises(ValueError, match="it has 0 for 2 requests; give None"):
        Sampled([[1], [2]], [])
