import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from minimal_vllm.attention.paged import PagedStep, write_to_cache
from tests.attention.paged import make_case, passed_by, run_reference, run_tiled


def run_torch(case, window):
    """PyTorch's own attention over each request's dense keys and values."""
    results, starts = [], case.batch.query_starts.tolist()
    for row, (keys, values) in enumerate(case.dense):
        queries = case.q[starts[row] : starts[row + 1]]
        distance = torch.arange(len(keys) - len(queries), len(keys))[:, None]
        distance = distance - torch.arange(len(keys))
        seen = (distance >= 0) & (distance < (window or len(keys)))
        out = scaled_dot_product_attention(
            queries.transpose(0, 1),
            keys.transpose(0, 1),
            values.transpose(0, 1),
            attn_mask=seen,
            enable_gqa=True,
        )
        results.append(out.transpose(0, 1))
    return torch.cat(results)


@pytest.mark.parametrize("window", [None, 1, 7, 100])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("block_size", [1, 5, 16])
def test_paged_attention_is_pytorchs_attention_over_the_dense_text(block_size, heads, window):
    case = make_case([(0, 33), (16, 1), (31, 20), (0, 1)], heads=heads, block_size=block_size)
    torch.testing.assert_close(run_reference(case, window), run_torch(case, window))


@pytest.mark.parametrize("run_it", [run_reference, run_tiled])
@pytest.mark.parametrize("window", [1, 7, 100])
@pytest.mark.parametrize("block_size", [1, 5, 16])
def test_blocks_that_the_window_has_passed_are_not_read(block_size, window, run_it):
    """They may be another request's, which may have NaN in them."""
    case = make_case([(0, 33), (16, 1), (31, 20), (150, 1), (200, 150)], block_size=block_size)
    result = run_it(passed_by(case, window), window)
    torch.testing.assert_close(result, run_torch(case, window))


def test_keys_and_values_are_written_to_their_slots_and_nowhere_else():
    case = make_case([(3, 4), (6, 1)], block_size=4, poison=-1.0)
    before = case.cache.key.clone()
    step = PagedStep.from_batch(case.batch, torch.device("cpu"))
    write_to_cache(case.k, case.v, case.cache, step.slots)
    for row, (keys, values) in enumerate(case.dense):
        for position in range(len(keys)):
            block = case.batch.block_tables[row][position // 4]
            assert case.cache.key[block, :, position % 4].equal(keys[position])
            assert case.cache.value[block, :, position % 4].equal(values[position])
    assert (case.cache.key != before).sum() == case.k.numel()
