"""Sampling on the GPU against the plain sampler; without a GPU, in Triton's interpreter."""

from math import inf, log, nan
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

import triton.language as tl

from minimal_vllm.sampling.kernels import filters
from minimal_vllm.sampling.kernels import sample as kernels
from minimal_vllm.sampling.kernels.sample import SamplingInputs, sample_rows
from minimal_vllm.sampling.row import NO_TOKEN
from minimal_vllm.sampling.sampler import sample
from tests.sampling.rows import row, tokens_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
QWEN3 = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}


def run_kernels(logits, rows):
    def numbers(values, dtype):
        return torch.tensor(list(values), dtype=dtype, device=DEVICE)

    params = [each.params for each in rows]
    known = SamplingInputs(
        temperature=numbers((each.temperature for each in params), torch.float32),
        seeds=numbers((each.seed for each in rows), torch.int64),
        output_index=numbers((each.next_output_index for each in rows), torch.int64),
        top_k=numbers((each.top_k for each in params), torch.int32),
        top_p=numbers((each.top_p for each in params), torch.float64),
        min_p=numbers((log(each.min_p) if each.min_p else -inf for each in params), torch.float32),
    )
    tokens = torch.full((len(rows),), -7, device=DEVICE)
    sample_rows(logits.to(DEVICE), known, tokens)
    return tokens.tolist()


def assert_all_agree(logits, rows):
    assert run_kernels(logits, rows) == tokens_of(sample(logits.clone(), rows))


def random_logits(*size, seed=1):
    return 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def make_rows(count):
    return [
        row(
            output=[0] * (index % 7),
            seed=(2**63 - 5 + 977 * index) % 2**63,
            temperature=0.0 if index % 3 == 0 else 0.15 * (index + 1),
        )
        for index in range(count)
    ]


FILTERS = [
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 50, "temperature": 0.1},
    {"top_k": 5000},
    {"top_k": 2**31 - 1, "top_p": 0.3},
    {"top_p": 1e-9},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 0.999999, "temperature": 3.0},
    {"min_p": 0.1},
    {"min_p": 1.0, "top_p": 0.5},
    {"min_p": 1e-300, "top_k": 30},
    QWEN3,
    {"top_k": 3000, "top_p": 0.9, "min_p": 1e-3, "temperature": 2.0},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "temperature": 1e9},
    {"top_k": 20, "top_p": 0.8, "temperature": 1e-4},
    {"top_k": 2, "top_p": 0.5, "temperature": 0.0},
    {},
]
"""All in one batch."""


def some_ties(logits):
    return logits.round()


def all_equal(logits):
    return torch.full_like(logits, 1.5)


def many_impossible(logits):
    return logits.masked_fill(torch.arange(logits.shape[1]) % 5 > 0, -inf)


def peak_above_ties(logits):
    result = torch.zeros_like(logits)
    result[:, -1] = 4.0
    return result


def zeros_of_both_signs(logits):
    return torch.where(logits > 0, 0.0, -0.0)


SHAPES = [
    torch.clone, some_ties, all_equal, many_impossible, peak_above_ties, zeros_of_both_signs
]  # fmt: skip


def filtered_rows(seed=0):
    return [row(seed=100 * seed + index, **params) for index, params in enumerate(FILTERS)]


@pytest.mark.parametrize("vocab_size", [1, 100, 4096, 9001])
def test_the_kernels_choose_what_the_plain_sampler_chooses(vocab_size):
    rows = make_rows(12)
    assert_all_agree(random_logits(len(rows), vocab_size), rows)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("vocab_size", [1, 3, 100, 9001])
def test_filters_keep_what_the_plain_sampler_keeps(vocab_size, shape):
    rows = filtered_rows()
    assert_all_agree(shape(random_logits(len(rows), vocab_size)), rows)


@st.composite
def filtered_row(draw):
    return row(
        seed=draw(st.integers(0, 2**63 - 1)),
        temperature=draw(st.sampled_from([0.0, 1e-3, 0.3, 1.0, 5.0])),
        top_k=draw(st.one_of(st.just(0), st.integers(1, 700))),
        top_p=draw(st.one_of(st.just(1.0), st.floats(1e-9, 0.999999))),
        min_p=draw(st.one_of(st.just(0.0), st.floats(1e-9, 1.0))),
    )


@settings(max_examples=60)
@given(
    rows=st.lists(filtered_row(), min_size=1, max_size=4),
    vocab_size=st.integers(1, 600),
    levels=st.sampled_from([None, 1, 2, 5, 40]),
    odd=st.sampled_from([None, -inf, inf, nan]),
    seed=st.integers(0, 1000),
)
def test_any_filters_on_any_logits_agree(rows, vocab_size, levels, odd, seed):
    logits = random_logits(len(rows), vocab_size, seed=seed)
    if levels is not None:
        logits = (logits * levels / 8).round() * 8 / levels
    if odd is not None:
        logits[-1, :: 1 + seed % 3] = odd
    # So few that they have to be approached by passes, as in a large vocabulary.
    with patch.multiple(filters, CANDIDATES=16, TILE_GROUPS=2):
        assert_all_agree(logits, rows)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_large_vocabulary_agrees(dtype, shape):
    for seed in range(5):
        rows = filtered_rows(seed)
        logits = shape(random_logits(len(rows), 151_936, seed=seed))
        assert_all_agree(logits.to(DEVICE, dtype), rows)


def test_of_equal_peaks_the_first_is_taken_also_across_chunks():
    logits = torch.zeros(1, 9000)
    logits[0, [50, 60, 8000]] = 1.0
    assert run_kernels(logits, [row(temperature=0.0)]) == [50]


@pytest.mark.parametrize("temperature", [1e-44, 1e-38, 1e-30])
def test_the_smallest_temperatures_take_the_peak(temperature):
    logits = torch.zeros(1, 5000, device=DEVICE)
    logits[0, 4500] = 1e-3
    assert run_kernels(logits, [row(temperature=temperature)]) == [4500]


def test_rows_that_cannot_be_sampled_get_no_token_and_change_no_other_row():
    rows = [*make_rows(8), row(**QWEN3), row(**QWEN3), row(**QWEN3), row(**QWEN3)]
    logits = random_logits(len(rows), 5000, seed=2)
    expected = tokens_of(sample(logits.clone(), rows))
    bad = {1: nan, 3: -inf, 6: inf, 8: nan, 9: -inf, 10: inf}
    for index, value in bad.items():
        logits[index, slice(None) if value == -inf else 4500] = value
        expected[index] = NO_TOKEN
    assert run_kernels(logits, rows) == expected


def test_every_token_is_drawn_as_often_as_it_is_probable():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    rows = [row(seed=seed, temperature=1.0) for seed in range(300)]
    tokens = torch.tensor(run_kernels(probabilities.log().repeat(len(rows), 1), rows))
    drawn = torch.bincount(tokens, minlength=4) / len(rows)
    assert (drawn - probabilities).abs().max() < 0.1


# ---- the tests themselves -----------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled kernels can't be patched")
@pytest.mark.parametrize("mistake", ["all ties stay", "the last of ties stay"])
def test_a_filter_with_another_rule_for_ties_is_found_out(mistake, monkeypatch):
    def is_kept(gap, token, limit):
        edge, last = filters.gap_of(limit), (limit & (2**20 - 1)).to(tl.int32)
        return (gap < edge) | ((gap == edge) & (mistake == "all ties stay" or token >= last))

    monkeypatch.setattr(kernels, "is_kept", is_kept)
    rows = filtered_rows()
    logits = some_ties(random_logits(len(rows), 4096))
    assert run_kernels(logits, rows) != tokens_of(sample(logits.clone(), rows))
