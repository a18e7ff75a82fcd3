"""Keys and values in FP8: half the bytes, and the same outputs however they are computed."""

import pytest
import torch
from checkpoints import FAMILIES, write_checkpoint

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.attention.paged import as_cached
from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.sizing import choose_groups, kv_block_bytes
from minimal_vllm.model.config import ModelConfig

PROMPTS = [list(range(40 + n, 3, -1)) for n in (0, 17, 31)]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"), FAMILIES["qwen3"])


def make_llm(folder, **options):
    return LLM(
        str(folder), num_gpu_blocks_override=32, dtype="float32", kv_cache_dtype="fp8", **options
    )


def tokens(llm, prompts):
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [list(o.outputs[0].token_ids) for o in llm.generate(inputs, GREEDY, use_tqdm=False)]


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_tokens_are_the_same_alone_together_chunked_and_cached(folder, backend):
    llm = make_llm(folder, attention_backend=backend)
    together = tokens(llm, PROMPTS)
    assert together == tokens(llm, PROMPTS), "found in the prefix cache"
    assert together == [tokens(make_llm(folder), [prompt])[0] for prompt in PROMPTS]
    small = make_llm(folder, max_num_batched_tokens=9, max_num_seqs=4)
    assert together == tokens(small, PROMPTS)
    assert {each.key.dtype for each in llm.built.caches} == {torch.float8_e4m3fn}


def test_a_block_takes_one_byte_per_number(folder):
    model = ModelConfig.from_checkpoint(folder)
    groups = choose_groups(model, 512)
    sizes = {
        kind: kv_block_bytes(EngineConfig("m", kv_cache_dtype=kind), model, groups, torch.bfloat16)
        for kind in ("auto", "fp8", "fp8_e4m3")
    }
    assert sizes["auto"] == 2 * sizes["fp8"] == 2 * sizes["fp8_e4m3"]


def test_keys_beyond_the_range_of_fp8_are_cut_off_and_not_lost():
    got = as_cached(torch.tensor([1e4, -1e4, 0.5]), torch.float8_e4m3fn)
    assert got.float().tolist() == [448, -448, 0.5]


def test_other_types_of_8_bits_are_refused_by_name():
    with pytest.raises(
        ValueError, match="kv_cache_dtype: should be 'auto' or 'fp8', not 'fp8_e5m2"
    ):
        EngineConfig("m", kv_cache_dtype="fp8_e5m2")
