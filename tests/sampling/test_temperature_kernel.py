"""Sampling on the GPU against the plain sampler; without a GPU, in Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton")

from minimal_vllm.sampling.kernels import temperature as kernels
from minimal_vllm.sampling.row import NO_TOKEN
from minimal_vllm.sampling.sampler import sample
from tests.sampling.rows import row

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run_kernels(logits, rows):
    tokens = torch.full((len(rows),), -7, device=DEVICE)
    kernels.sample_by_temperature(
        logits.to(DEVICE),
        torch.tensor([each.params.temperature for each in rows], device=DEVICE),
        torch.tensor([each.seed for each in rows], device=DEVICE),
        torch.tensor([each.next_output_index for each in rows], device=DEVICE),
        tokens,
    )
    return tokens.tolist()


def make_rows(count):
    return [
        row(
            output=[0] * (index % 7),
            seed=(2**63 - 5 + 977 * index) % 2**63,
            temperature=0.0 if index % 3 == 0 else 0.15 * (index + 1),
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("vocab_size", [1, 100, 4096, 9001])
def test_the_kernels_choose_what_the_plain_sampler_chooses(vocab_size):
    rows = make_rows(12)
    logits = 3 * torch.randn(len(rows), vocab_size, generator=torch.Generator().manual_seed(1))
    assert run_kernels(logits, rows) == sample(logits.clone(), rows).token_ids


def test_of_equal_peaks_the_first_is_taken_also_across_chunks():
    logits = torch.zeros(1, 9000)
    logits[0, [50, 60, 8000]] = 1.0
    assert run_kernels(logits, [row(temperature=0.0)]) == [50]


def test_rows_that_cannot_be_sampled_get_no_token_and_harm_nobody():
    rows = make_rows(8)
    logits = torch.randn(len(rows), 5000, generator=torch.Generator().manual_seed(2))
    expected = sample(logits.clone(), rows).token_ids
    logits[1, 4500], logits[3], logits[6, 3] = float("nan"), -float("inf"), float("inf")
    for bad in (1, 3, 6):
        expected[bad] = NO_TOKEN
    assert run_kernels(logits, rows) == expected


def test_every_token_is_drawn_as_often_as_it_is_probable():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    rows = [row(seed=seed, temperature=1.0) for seed in range(300)]
    tokens = torch.tensor(run_kernels(probabilities.log().repeat(len(rows), 1), rows))
    drawn = torch.bincount(tokens, minlength=4) / len(rows)
    assert (drawn - probabilities).abs().max() < 0.1
