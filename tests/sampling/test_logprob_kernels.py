"""Log-probabilities on the GPU against the plain ones; without a GPU, in Triton's interpreter."""

from math import inf, nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from minimal_vllm.device.transfer import Fetch
from minimal_vllm.sampling import logprobs as plain
from minimal_vllm.sampling.kernels import logprobs as kernels
from minimal_vllm.sampling.logprobs import AskedLogprobs, QueuedLogprobs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WANTED = [5, None, 0, [8, 0, 8], 7, 9, [3], 1]
"""All in one batch."""


def random_logits(*size, seed=1):
    return 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def find_both(logits, chosen, wanted):
    logits, chosen = logits.to(DEVICE), torch.tensor(chosen, device=DEVICE)
    asked = AskedLogprobs.of(wanted, logits.shape[1], DEVICE)
    return [
        QueuedLogprobs(Fetch(each.find_logprobs(logits, chosen, asked)), asked).wait()
        for each in (kernels, plain)
    ]


def assert_agree(logits, chosen, wanted):
    for row, (got, expected) in enumerate(zip(*find_both(logits, chosen, wanted), strict=True)):
        assert (got is None) is (expected is None)
        if got is None:
            continue
        assert list(got.logprobs) == pytest.approx(list(expected.logprobs), abs=2e-6)
        assert got.ranks == expected.ranks
        # Of equal logits, the plain way may find any.
        values = [logits[row, list(each.token_ids)].tolist() for each in (got, expected)]
        assert values[0] == values[1]
        assert_top_is_in_order(logits[row], got.token_ids[1:], wanted[row])


def assert_top_is_in_order(logits, top, wanted):
    """Of equal logits, the first in the vocabulary comes first."""
    if isinstance(wanted, int):
        order = (logits + 0.0).sort(descending=True, stable=True).indices[: len(top)]
        assert list(top) == order.tolist()


@pytest.mark.parametrize("vocab_size", [9, 20, 129])
def test_small_vocabularies_agree(vocab_size):
    logits = random_logits(len(WANTED), vocab_size)
    assert_agree(logits, [0, 1, 5, vocab_size - 1, 3, 8, 2, 0], WANTED)


def test_all_tokens_of_two_groups_are_found_in_order():
    assert_agree(random_logits(1, 140), [3], [-1])


@pytest.mark.parametrize("vocab_size", [4096, 9001])
def test_vocabularies_of_several_chunks_agree(vocab_size):
    wanted = [5, None, [vocab_size - 1, 4095, 9], 12]
    logits = random_logits(len(wanted), vocab_size)
    assert_agree(logits, [0, 1, vocab_size - 1, 4095], wanted)


def test_only_some_tokens_of_many_groups_are_possible():
    logits = random_logits(2, 5000)
    logits = logits.masked_fill(torch.arange(5000) % 700 > 0, -inf)
    assert_agree(logits, [700, 1], [12, [0, 1, 700]])


def test_a_row_without_a_chosen_token_does_no_harm_to_others():
    logits = random_logits(3, 1000)
    logits[0, 7] = nan
    logits[1] = -inf
    for alone, mixed in zip(
        find_both(logits[2:], [5], [3]),
        find_both(logits, [-1, -1, 5], [3, [4, 5], 3]),
        strict=True,
    ):
        assert mixed[2] == alone[0]


def test_more_top_tokens_than_pay_one_by_one_are_sorted(monkeypatch):
    monkeypatch.setattr(kernels, "MAX_TOP", 10)
    assert_agree(random_logits(2, 600), [0, 1], [11, 2])


@settings(max_examples=15)
@given(
    wanted=st.lists(
        st.one_of(
            st.none(),
            st.integers(0, 12),
            st.lists(st.integers(0, 139), min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=4,
    ).filter(lambda each: any(one is not None for one in each)),
    levels=st.sampled_from([None, 1, 2, 40]),
    seed=st.integers(0, 1000),
)
def test_whatever_is_asked_of_any_logits_agrees(wanted, levels, seed):
    logits = random_logits(len(wanted), 140, seed=seed)
    if levels is not None:
        logits = (logits * levels / 8).round() * 8 / levels
    assert_agree(logits, [seed % 140] * len(wanted), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wanted", [0, 1, 5, 20, 256, [1, 2, 150_000]])
def test_a_large_vocabulary_agrees(dtype, wanted):
    logits = random_logits(64, 151_936).to(DEVICE, dtype)
    chosen = [(31 * row) % 151_936 for row in range(64)]
    assert_agree(logits, chosen, [wanted if row % 3 else None for row in range(64)])
    assert_agree(logits, chosen, [wanted] * 64)
