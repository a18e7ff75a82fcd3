"""The CPU's fast attention against the plain one."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from minimal_vllm.attention import tiled
from tests.attention.paged import (
    UNUSUAL,
    in_fp8,
    make_case,
    make_needle_case,
    run_reference,
    run_tiled,
)

MIXES = {
    "decodes": [(7, 1), (300, 1), (0, 1), (128, 1), (127, 1)],
    "prompts": [(0, 31), (0, 32), (0, 33), (0, 150)],
    "chunks beside decodes": [(20, 1), (40, 50), (130, 2), (255, 1), (0, 3)],
}
HEADS = {"mha": (4, 4), "gqa": (6, 2), "mqa": (4, 1)}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("window", [None, 1, 7, 100])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("block_size", [1, 5, 16, 32])
def test_tiles_give_what_the_reference_gives(block_size, heads, window, mix):
    case = make_case(MIXES[mix], heads=HEADS[heads], block_size=block_size)
    torch.testing.assert_close(run_tiled(case, window), run_reference(case, window))


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("options", UNUSUAL)
def test_softcap_and_sinks_are_those_of_the_reference(options, mix):
    case, options = make_case(MIXES[mix], heads=HEADS["gqa"]), UNUSUAL[options]
    torch.testing.assert_close(run_tiled(case, options), run_reference(case, options))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.bfloat16, 1.6e-2), (torch.float16, 2e-3)],
    ids=str,
)
@pytest.mark.parametrize("head_dim", [16, 24, 64, 80, 128])
def test_every_head_size_and_dtype_agrees(head_dim, dtype, tolerance):
    case = make_case(MIXES["chunks beside decodes"], head_dim=head_dim, dtype=dtype)
    result = run_tiled(case)
    assert result.dtype is dtype
    torch.testing.assert_close(result, run_reference(case), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("window", [None, 100])
def test_a_cache_in_fp8_is_read_as_the_reference_reads_it(window, mix):
    case = in_fp8(make_case(MIXES[mix], heads=HEADS["gqa"]))
    torch.testing.assert_close(run_tiled(case, window), run_reference(case, window))


def test_a_needle_among_100_000_keys_in_fp8_is_found():
    case = make_needle_case(100_000, 1)
    expected = run_reference(case)
    assert (expected[0, 0] - torch.arange(16.0)).abs().max() < 5
    torch.testing.assert_close(run_tiled(in_fp8(case)), expected, atol=0.3, rtol=0.05)


@pytest.mark.parametrize("scratch_bytes", [1, 1 << 15, 1 << 17])
def test_results_do_not_depend_on_how_work_is_cut_into_rounds(scratch_bytes, monkeypatch):
    cases = [make_case(MIXES[mix], seed=seed) for mix, seed in product(MIXES, range(3))]
    monkeypatch.setattr(tiled, "SCRATCH_BYTES", {"cpu": scratch_bytes})
    for case, window in product(cases, (None, 40)):
        torch.testing.assert_close(run_tiled(case, window), run_reference(case, window))


@pytest.mark.parametrize("size", [40.0, -40.0, 1e4])
def test_great_scores_neither_overflow_nor_vanish(size):
    case = make_case(MIXES["chunks beside decodes"])
    case = replace(case, q=case.q * size)
    torch.testing.assert_close(run_tiled(case), run_reference(case), atol=1e-4, rtol=1e-4)


def test_one_requests_nan_changes_no_other_request():
    lengths = MIXES["chunks beside decodes"]
    case = make_case(lengths)
    expected = run_reference(case)
    start, end = case.batch.query_starts[1:3]
    for each in (case.k, case.v):
        each[start:end] = float("nan")
    for result in (run_tiled(case), run_reference(case)):
        assert result[start:end].isnan().all()
        torch.testing.assert_close(result[:start], expected[:start])
        torch.testing.assert_close(result[end:], expected[end:])


# ---- the inverse: an attention broken on purpose must be found out ------------------------------


def see_one_token_too_far(case):
    return replace(case.batch, positions=case.batch.positions + 1)


def see_one_token_too_few(case):
    return replace(case.batch, positions=case.batch.positions - (case.batch.positions > 0))


def read_a_wrong_block(case):
    tables = case.batch.block_tables.copy()
    tables[1, 0] = tables[3, 0]
    return replace(case.batch, block_tables=tables)


def take_a_token_for_unwritten(case):
    return replace(case.batch, seq_lens=case.batch.seq_lens - 1)


@pytest.mark.parametrize(
    "break_it",
    [see_one_token_too_far, see_one_token_too_few, read_a_wrong_block, take_a_token_for_unwritten],
)
def test_a_broken_attention_is_found_out(break_it):
    case = make_case(MIXES["chunks beside decodes"], poison=0.0)
    expected = run_reference(case)
    torch.testing.assert_close(run_tiled(case), expected)
    broken = replace(case, batch=break_it(case))
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(run_tiled(broken), expected)


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([9], [1]),
        ([5, 5, 5], [3]),
        ([50, 5, 5, 4], [1, 3]),  # longer than a group of several contexts
        ([10, 9, 8, 7, 6], [2, 3]),  # three would hold 30 keys
        ([6, 4, 3, 2], [2, 2]),  # 2 + 3 keys would be padding
    ],
)
def test_contexts_of_similar_length_are_grouped(lengths, groups):
    slices = list(tiled.similar_lengths(lengths, max_keys=24, max_padding=4))
    assert [each.stop - each.start for each in slices] == groups
    assert [lengths[i] for each in slices for i in range(each.start, each.stop)] == lengths
