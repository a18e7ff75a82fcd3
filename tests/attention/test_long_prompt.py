"""Long prompts on a CPU, in pieces, against the plain attention."""

import pytest
import torch

from minimal_vllm.attention import tiled
from minimal_vllm.attention.long_prompt import PIECE, LongPrompt, piece_mask
from minimal_vllm.cache.layer_groups import NO_BLOCK
from tests.attention.paged import in_fp8, make_case, run_reference, run_tiled

MIXES = {
    "prompts": [(0, 64), (0, 65), (0, 127), (0, 200)],
    "chunks": [(3, 64), (100, 150), (250, 129)],
    "all kinds": [(0, 40), (20, 1), (70, 100), (0, 64), (300, 1), (5, 3)],
}


@pytest.fixture
def attended(monkeypatch):
    """Numbers of tokens of the prompts that were computed in pieces."""
    counts, attend = [], LongPrompt.attend

    def watched(prompt, *args):
        counts.append(prompt.end - prompt.first)
        attend(prompt, *args)

    monkeypatch.setattr(LongPrompt, "attend", watched)
    return counts


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("window", [None, 1, 30, 64, 100])
@pytest.mark.parametrize("block_size", [1, 5, 16, 32])
def test_pieces_give_what_the_reference_gives(block_size, window, mix, attended):
    case = make_case(MIXES[mix], heads=(6, 2), block_size=block_size)
    torch.testing.assert_close(run_tiled(case, window), run_reference(case, window))
    assert attended == [new for _, new in MIXES[mix] if new >= tiled.LONG_PROMPT]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_numbers_and_an_fp8_cache_agree(dtype):
    case = make_case(MIXES["all kinds"], dtype=dtype)
    torch.testing.assert_close(run_tiled(case), run_reference(case), atol=1.6e-2, rtol=1.6e-2)
    case = in_fp8(make_case(MIXES["all kinds"]))
    torch.testing.assert_close(run_tiled(case), run_reference(case))


def test_blocks_that_the_window_has_left_behind_are_not_read(attended):
    case = make_case([(200, 80)], block_size=16)
    expected = run_reference(case, 50)
    case.batch.block_tables[0, : (200 - 49) // 16] = NO_BLOCK
    torch.testing.assert_close(run_tiled(case, 50), expected)
    assert attended == [80]


def test_prompts_whose_keys_take_too_much_memory_are_left_to_tiles(attended, monkeypatch):
    case = make_case(MIXES["chunks"], heads=(6, 2), head_dim=32)
    monkeypatch.setattr(tiled, "MAX_KEY_BYTES", 300 * 2 * 32 * 4)
    torch.testing.assert_close(run_tiled(case), run_reference(case))
    assert attended == [64, 150]


def test_a_mask_ends_with_the_last_token_and_its_key():
    visible = piece_mask(PIECE + 3, window=None) == 0
    assert visible[-1].all()
    assert visible.sum(1).tolist() == list(range(4, PIECE + 4))
    near = piece_mask(PIECE + 3, window=2) == 0
    assert near.sum(1).tolist() == [2] * PIECE
    assert near[-1, -2:].all()
