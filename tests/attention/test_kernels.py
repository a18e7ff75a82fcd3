"""The GPU's attention against the plain one; without a GPU, in Triton's interpreter.

In each layer of a case, all memory that belongs to no request holds NaN: a kernel that reads one
number too many gives NaN.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from hypothesis import given, settings
from hypothesis import strategies as st

from minimal_vllm.attention.interface import AttentionOptions
from minimal_vllm.attention.kernels import decode, prefill
from minimal_vllm.attention.kernels.pieces import cut, cut_reference
from minimal_vllm.attention.triton_backend import TritonAttention, TritonStep
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.runner.guesses import count_together
from minimal_vllm.step.shared_prefix import SharedPrefix
from tests.attention.paged import (
    UNUSUAL,
    in_fp8,
    make_case,
    make_needle_case,
    passed_by,
    run,
    run_reference,
    window_of,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_SMS = 4
ON_GPU = pytest.mark.gpu
MIXES = {
    "decodes": [(7, 1), (300, 1), (0, 1), (128, 1), (127, 1)],
    "prompts": [(0, 31), (0, 129), (0, 128), (0, 2)],
    "chunks beside decodes": [(20, 1), (40, 50), (130, 2), (255, 1), (0, 3)],
}


def on_device(case):
    return replace(
        case,
        q=case.q.to(DEVICE),
        k=case.k.to(DEVICE),
        v=case.v.to(DEVICE),
        cache=LayerCache(*(layer.to(DEVICE) for layer in case.cache)),
    )


def make_attention(case, options=None, max_num_seqs=16, max_guessed=0):
    _, num_kv_heads, _, head_dim = case.cache.key.shape
    return TritonAttention(
        windows=frozenset({window_of(options)}),
        num_heads=case.q.shape[1],
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_num_seqs=max_num_seqs,
        num_sms=NUM_SMS,
        device=DEVICE,
        dtype=case.q.dtype,
        plain=not isinstance(options, AttentionOptions),
        max_guessed=max_guessed,
    )


def run_kernels(case, options=None, plan=None):
    attention = make_attention(case, options)
    return run(attention, on_device(case), options, plan and plan(attention)).cpu()


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("window", [None, 1, 100])
@pytest.mark.parametrize(("heads", "block_size"), [((4, 4), 16), ((6, 2), 32), ((4, 1), 16)])
def test_kernels_give_what_the_reference_gives(mix, window, heads, block_size):
    case = make_case(MIXES[mix], heads=heads, block_size=block_size)
    torch.testing.assert_close(run_kernels(case, window), run_reference(case, window))


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("window", [1, 23, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # with tiles of 16 and 64 keys
def test_blocks_that_the_window_has_passed_are_not_read(mix, window, dtype):
    case = make_case(MIXES[mix], dtype=dtype)
    result = run_kernels(passed_by(case, window), window)
    torch.testing.assert_close(result, run_reference(case, window), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("window", [None, 100])
def test_a_cache_in_fp8_is_read_as_the_reference_reads_it(window):
    case = in_fp8(make_case(MIXES["chunks beside decodes"], heads=(6, 2)))
    torch.testing.assert_close(run_kernels(case, window), run_reference(case, window))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_16_bit_queries_read_a_cache_in_fp8_as_the_reference_does(head_dim, window, mix, dtype):
    case = in_fp8(make_case(MIXES[mix], heads=(6, 2), head_dim=head_dim, dtype=dtype))
    expected = run_reference(case, window)
    torch.testing.assert_close(run_kernels(case, window), expected, atol=1.6e-2, rtol=1.6e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("head_dim", [96, 128, 256])
def test_many_requests_read_a_cache_in_fp8_as_the_reference_does(head_dim, window):
    lengths = [(70 * index, 1) for index in range(14)]  # times 12 is more than an H200's SMs
    case = in_fp8(make_case(lengths, heads=(24, 12), head_dim=head_dim, dtype=torch.bfloat16))
    expected = run_reference(case, window)
    torch.testing.assert_close(run_kernels(case, window), expected, atol=1.6e-2, rtol=1.6e-2)


@pytest.mark.gpu  # the interpreter takes a minute
@pytest.mark.parametrize("num_tokens", [1, 5])  # the decode kernel's and the prefill kernel's
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_needle_among_100_000_keys_in_fp8_is_found(num_tokens, dtype):
    case = make_needle_case(100_000, num_tokens, dtype)
    needle = torch.arange(16.0).to(dtype)
    exact = run_reference(case)
    assert (exact[0, 0] - needle).abs().max() < 5
    torch.testing.assert_close(run_kernels(in_fp8(case)), exact, atol=0.3, rtol=0.05)


@pytest.mark.parametrize("options", UNUSUAL)
def test_softcap_and_sinks_are_those_of_the_reference(options):
    case, options = make_case([(20, 1), (140, 1), (3, 20)], heads=(6, 2)), UNUSUAL[options]
    torch.testing.assert_close(run_kernels(case, options), run_reference(case, options))


@pytest.mark.parametrize(
    ("lengths", "options"),
    [
        ([(1200, 5)], None),
        ([(2100, 130), (90, 1)], None),
        ([(1030, 2), (3, 2)], None),
        ([(1030, 2)], "softcap and sinks"),
    ],
)
def test_a_few_tokens_behind_a_long_context_are_computed_in_pieces(lengths, options):
    case, options = make_case(lengths, heads=(2, 1)), UNUSUAL.get(options)
    attention = make_attention(case, options)
    assert (attention.plan(on_device(case).batch).prefill[None].pieces[:, 8] > 1).any()
    expected = run_reference(case, options)
    for _ in range(2):  # the counters are left as they were found
        result = run(attention, on_device(case), options).cpu()
        torch.testing.assert_close(result, expected)


@given(
    st.lists(st.tuples(st.integers(1, 128), st.integers(0, 9000)), min_size=1, max_size=20),
    st.sampled_from([1, 8, 32]),
)
def test_the_pieces_of_a_tile_have_each_of_its_keys_once(tiles, num_heads):
    tiles = np.array([(0, 0, tokens, position) for tokens, position in tiles])
    pieces = prefill.cut_tiles(tiles, num_heads, 132, windowed=False)
    assert prefill.cut_tiles(tiles, num_heads, 132, windowed=True).shape[0] == len(tiles)
    for index, (_, _, num_tokens, position) in enumerate(tiles):
        own = pieces[pieces[:, prefill.TILE] == index]
        keys = [own[0, prefill.FIRST_KEY], *own[:, prefill.END_KEY]]
        assert (keys[0], keys[-1]) == (0, position + num_tokens)
        assert keys[1:-1] == own[1:, prefill.FIRST_KEY].tolist()
        assert all(key % 512 == 0 and key <= position for key in keys[1:-1])
        assert set(own[:, prefill.NUM_PIECES]) == {len(own)}


@pytest.mark.parametrize("head_dim", [8, 64, 80, 128, 256])
def test_every_head_size_agrees(head_dim):
    case = make_case([(20, 1), (3, 9), (70, 1)], head_dim=head_dim)
    torch.testing.assert_close(run_kernels(case), run_reference(case))


@pytest.mark.parametrize("num_tokens", [600, 5 * 64 + 1])  # ten pieces and six
@pytest.mark.parametrize(
    ("heads", "options"),
    [((2, 1), None), ((3, 1), None), ((8, 1), None), ((16, 1), 300), ((2, 1), "sinks")],
)
def test_more_pieces_than_are_merged_at_once_are_all_merged(num_tokens, heads, options):
    case, options = make_case([(num_tokens, 1)], heads=heads), UNUSUAL.get(options, options)
    attention = make_attention(case, options)
    decode = attention.plan(on_device(case).batch).decode
    if options != 300:
        (work,) = decode.values()
        assert work.pieces.first_piece.tolist() == [0, num_tokens // 64 + 1]
    torch.testing.assert_close(run_kernels(case, options), run_reference(case, options))


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1.6e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_16_bit_numbers_agree(head_dim, mix, dtype, tolerance):
    case = make_case(MIXES[mix], head_dim=head_dim, dtype=dtype)
    expected = run_reference(case)
    torch.testing.assert_close(run_kernels(case), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [None, 100, *UNUSUAL])
@pytest.mark.parametrize(("heads", "head_dim"), [((8, 1), 64), ((4, 2), 256)])
def test_windows_softcap_and_sinks_agree_in_16_bits(heads, head_dim, options):
    options = UNUSUAL.get(options, options)
    mix = MIXES["chunks beside decodes"]
    case = make_case(mix, heads=heads, head_dim=head_dim, dtype=torch.bfloat16)
    expected = run_reference(case, options)
    torch.testing.assert_close(run_kernels(case, options), expected, atol=1.6e-2, rtol=1.6e-2)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "lengths",
    [
        [(0, 1024)],
        [(0, 1024), (0, 1024)],  # the whole step
        [(7, 1), (0, 1024), (0, 1024), (0, 3)],  # side by side
        [(0, 1030), (0, 1151), (0, 1152)],  # padded
        [(0, 1500), (5, 1), (0, 30), (0, 2047), (16, 1100)],
    ],
)
def test_the_librarys_kernel_and_ours_share_a_step_rightly(lengths):
    case = make_case(lengths, heads=(4, 2), head_dim=128, dtype=torch.bfloat16)
    assert make_attention(case).plan(on_device(case).batch).fresh
    expected = run_reference(case)
    torch.testing.assert_close(run_kernels(case), expected, atol=1.6e-2, rtol=1.6e-2)


@pytest.mark.gpu
def test_no_prompt_goes_to_the_library_if_layers_have_softcap_or_sinks():
    case = make_case([(0, 1024)], heads=(4, 2), head_dim=128, dtype=torch.bfloat16)
    assert not make_attention(case, UNUSUAL["softcap"]).plan(on_device(case).batch).fresh


@pytest.mark.parametrize("size", [40.0, -40.0, 1e4])
def test_great_scores_neither_overflow_nor_vanish(size):
    case = make_case(MIXES["chunks beside decodes"])
    case = replace(case, q=case.q * size)
    torch.testing.assert_close(run_kernels(case), run_reference(case), atol=1e-4, rtol=1e-4)


# ---- several tokens of a request in the decode kernel -------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "heads", "options"),
    [
        ([(20, 3), (300, 1), (0, 2), (127, 4), (128, 4)], (4, 1), None),
        ([(20, 9), (300, 16), (0, 5)], (8, 2), None),  # more than a program computes
        ([(700, 7), (70, 8)], (2, 1), None),  # in pieces
        ([(20, 3), (300, 4), (99, 4), (0, 2)], (4, 1), 100),
        ([(40, 3), (300, 4)], (4, 1), 1),
        ([(700, 7), (70, 3)], (2, 1), 200),
        ([(700, 7), (70, 3)], (2, 1), "all"),
        ([(130, 2), (5, 1)], (32, 2), "softcap"),  # one token fills a program
    ],
)
def test_a_program_computes_a_few_tokens_as_if_each_were_alone(lengths, heads, options):
    case = make_case(lengths, heads=heads)
    options = UNUSUAL.get(options, options)

    def plan(attention):
        def with_counts(batch):
            counts = count_together(batch.num_new, attention.max_queries)
            numbers = (
                np.arange(len(counts)),
                np.where(counts, batch.positions + 1, 0),
                np.repeat(np.arange(len(lengths)), batch.num_new),
                counts,
            )
            token, seq_lens, rows, counts = (
                torch.tensor(each, dtype=torch.int32, device=DEVICE) for each in numbers
            )
            tables = torch.tensor(batch.block_tables, device=DEVICE)
            decode = attention.plan_decode(token, seq_lens, rows, tables, None, counts)
            return TritonStep(slots=torch.tensor(batch.slot_mapping).to(DEVICE), decode=decode)

        return with_counts

    attention = make_attention(case, options, max_guessed=64)
    expected = run_reference(case, options)
    for _ in range(2):  # the counters are left as they were found
        result = run(attention, on_device(case), options, plan(attention)).cpu()
        torch.testing.assert_close(result, expected)


# ---- beginnings that requests share -------------------------------------------------------------


def make_sharing_case(groups, *, heads, block_size=16, dtype=torch.float32):
    """Decoding requests: of each group ``(shared blocks, [own tokens, …])``; and who shares."""
    lengths, prefixes = [], []
    for shared, own in groups:
        members = list(range(len(lengths), len(lengths) + len(own)))
        prefixes.append(SharedPrefix(members, shared * block_size))
        lengths += [(shared * block_size + tokens, 1) for tokens in own]
    case = make_case(lengths, heads=heads, block_size=block_size, dtype=dtype)
    tables = case.batch.block_tables
    for (shared, _), prefix in zip(groups, prefixes, strict=True):
        tables[prefix.members, :shared] = tables[prefix.members[0], :shared]
    return case, [prefix for prefix in prefixes if len(prefix.members) > 1]


@pytest.mark.parametrize(
    ("groups", "heads", "options"),
    [
        ([(3, [0, 5, 40])], (4, 2), None),
        ([(3, [0, 5, 40])], (4, 2), "softcap and sinks"),
        ([(10, [1, 2]), (0, [70]), (1, [3, 20])], (8, 1), None),
        ([(5, [index % 19 for index in range(9)])], (16, 2), None),  # several tiles of rows
        ([(2, [7, 9]), (0, [200, 3])], (4, 4), None),
    ],
)
def test_reading_a_shared_beginning_once_changes_nothing(groups, heads, options):
    case, prefixes = make_sharing_case(groups, heads=heads)
    options = UNUSUAL.get(options)
    got = run_kernels(case, options, share(prefixes))
    torch.testing.assert_close(got, run_reference(case, options))


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=ON_GPU)])
def test_a_shared_beginning_in_fp8_is_read_as_the_reference_reads_it(dtype):
    case, prefixes = make_sharing_case([(5, [1, 20, 33])], heads=(8, 2), dtype=dtype)
    case = in_fp8(case)
    tolerance = 1e-5 if dtype == torch.float32 else 1.6e-2
    torch.testing.assert_close(
        run_kernels(case, None, share(prefixes)),
        run_reference(case),
        atol=tolerance,
        rtol=tolerance,
    )


def share(prefixes):
    """Return a function that plans a step whose decoding requests share prefixes."""

    def plan(attention):
        def with_shared(batch):
            step = attention.plan(batch)
            work = attention.new_shared_work(16)
            attention.fill_shared_work(work, prefixes, 16)
            shared = replace(work, lengths=work.lengths[: len(batch.seq_lens)])
            one = step.decode[None]
            decode = attention.plan_decode(
                one.token, one.seq_lens, one.table_row, one.block_tables, shared
            )
            assert decode[None].pieces.start.tolist() != [0] * len(batch.seq_lens)
            return replace(step, decode=decode, shared=shared)

        return with_shared

    return plan


# ---- pieces -------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 3000)), min_size=1, max_size=9),
    st.sampled_from([1, 2, 8]),
    st.sampled_from([None, 1, 128, 129, 1000]),
)
def test_contexts_are_cut_as_the_reference_cuts_them(contexts, num_kv_heads, window):
    starts, ends = torch.tensor(contexts, dtype=torch.int32).T.contiguous()
    expected = cut_reference(starts, ends, num_kv_heads, NUM_SMS, window)
    got = cut(starts.to(DEVICE), ends.to(DEVICE), num_kv_heads, NUM_SMS, window)
    assert got.owner.cpu().equal(expected.owner)
    assert got.first_piece.cpu().equal(expected.first_piece)
    assert got.piece_size.cpu().equal(expected.piece_size)
    assert got.start.cpu().equal(expected.start)


def test_arrivals_are_left_as_they_were_found():
    case = make_case(MIXES["decodes"])
    attention = make_attention(case)
    run(attention, on_device(case), None)
    assert not attention._arrivals.any()


# ---- the tests themselves -----------------------------------------------------------------------


@pytest.mark.parametrize(("module", "mix"), [(decode, "decodes"), (prefill, "prompts")])
def test_a_kernel_that_is_slightly_wrong_is_found_out(module, mix, monkeypatch):
    monkeypatch.setattr(module, "LOG2_E", module.LOG2_E * 1.01)
    case = make_case(MIXES[mix])
    assert not torch.allclose(run_kernels(case), run_reference(case), rtol=1e-3, atol=1e-3)


def test_a_kernel_that_reads_another_block_is_found_out():
    for mix in MIXES.values():
        case = make_case(mix)
        expected = run_reference(case)
        case.batch.block_tables[1, 0] += 1
        assert not torch.allclose(run_kernels(case), expected, rtol=1e-3, atol=1e-3)
