"""The engine on CUDA; the CPU is the oracle."""

import pytest
import torch
from checkpoints import FAMILIES, QUANTIZED

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.attention.reference import ReferenceAttention
from minimal_vllm.cache.memory import gpu_free, measure_memory
from minimal_vllm.sampling.sampler import sample
from minimal_vllm_lab.ablate.policies import ContiguousPool, LongestReserved, StaticBatching

pytestmark = pytest.mark.gpu

PROMPTS = [[(7 * i + n) % 250 for i in range(n)] for n in (1, 16, 17, 33, 80, 150)]
GREEDY = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, logprobs=1)


def complete(folder, device, params=GREEDY, **options):
    llm = LLM(str(folder), device=device, num_gpu_blocks_override=100, max_model_len=256, **options)
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    llm.engine.scheduler.check()
    return [output.outputs[0] for output in outputs]


class MySampler:
    """One of the user's, who is fine with the usual one."""

    def __call__(self, logits, rows):
        return sample(logits, rows)


WAYS = {
    "reference": {"attention_backend": "reference"},
    "tiled": {"attention_backend": "tiled"},
    "kernels": {"enforce_eager": True, "async_scheduling": False},
    "graphs": {"async_scheduling": False},
    "ahead": {"enforce_eager": True},
    "everything": {},
    "a sampler of the user's": {"sampler": MySampler},
    "attention of the user's": {"attention_backend": ReferenceAttention},
    "static batches, planned ahead": {"scheduler": StaticBatching, "async_scheduling": True},
    "contiguous memory, planned ahead": {
        "scheduler": LongestReserved,
        "block_pool": ContiguousPool,
        "enable_prefix_caching": False,
        "async_scheduling": True,
    },
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", [*FAMILIES, *QUANTIZED])
def test_float32_tokens_on_the_gpu_are_those_of_the_cpu(checkpoint, family, way):
    options = {"dtype": "float32", "max_num_batched_tokens": 64, "max_num_seqs": 4}
    expected = complete(checkpoint(family), "cpu", **options)
    got = complete(checkpoint(family), "cuda", **options, **WAYS[way])
    assert [each.token_ids for each in got] == [each.token_ids for each in expected]


@pytest.mark.parametrize("way", ["tiled", "kernels", "everything"])
@pytest.mark.parametrize("family", ["qwen3", "llama", "mistral-window"])
def test_tokens_from_a_cache_in_fp8_on_the_gpu_are_those_of_the_cpu(checkpoint, family, way):
    options = {"dtype": "float32", "kv_cache_dtype": "fp8", "max_num_seqs": 4}
    expected = complete(checkpoint(family), "cpu", **options)
    got = complete(checkpoint(family), "cuda", **options, **WAYS[way])
    assert [each.token_ids for each in got] == [each.token_ids for each in expected]


SHARED = [(3 * i * i + 1) % 250 for i in range(64)]


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("cascade", [True, False])
@pytest.mark.parametrize(
    "family", ["qwen3", "llama", "qwen3-bias-layer-types", "gemma2", "gpt-oss-mxfp4"]
)
def test_what_requests_share_is_read_right_once_for_all(
    checkpoint, family, cascade, kv_cache_dtype
):
    prompts = [SHARED + [7 * i % 250 for i in range(n)] for n in (1, 5, 16, 17, 33)]
    others = [[11 * i % 250 for i in range(n)] for n in (3, 40)]
    llms = [
        LLM(str(checkpoint(family)), dtype="float32", max_model_len=256, block_size=16,
            num_gpu_blocks_override=200, max_num_seqs=8, kv_cache_dtype=kv_cache_dtype, **options)
        for options in ({"device": "cpu"}, {"device": "cuda", "cascade_attention": cascade})
    ]  # fmt: skip
    expected, got = (llm.generate(prompts + others, GREEDY, use_tqdm=False) for llm in llms)
    assert [each.outputs[0].token_ids for each in got] == [
        each.outputs[0].token_ids for each in expected
    ]
    assert llms[1].engine._runner._graphs._last_shares is cascade


def test_beginnings_shared_in_pairs_are_read_right(checkpoint):
    prompts = [[(3 * i + 40 * pair) % 250 for i in range(64)] + [own, pair]
               for pair in range(4) for own in (1, 2)]  # fmt: skip
    expected, got = (
        LLM(str(checkpoint("qwen3")), device=device, dtype="float32", max_model_len=256,
            num_gpu_blocks_override=100, max_num_seqs=8).generate(prompts, GREEDY, use_tqdm=False)
        for device in ("cpu", "cuda")
    )  # fmt: skip
    assert [each.outputs[0].token_ids for each in got] == [
        each.outputs[0].token_ids for each in expected
    ]


@pytest.mark.parametrize("way", ["everything", "kernels"])
@pytest.mark.parametrize(
    "family", ["qwen3", "mistral-window", "qwen3-bias-layer-types", "gemma2", "gpt-oss"]
)
def test_requests_that_come_while_others_run_get_the_cpus_tokens(checkpoint, family, way):
    tokens = {}
    for device, options in (("cpu", {}), ("cuda", WAYS[way])):
        engine = LLM(
            str(checkpoint(family)), device=device, dtype="float32", max_model_len=256,
            num_gpu_blocks_override=60, max_num_seqs=40, **options,
        ).engine  # fmt: skip
        got, waiting = {}, list(enumerate(PROMPTS * 8))
        while waiting or engine.has_unfinished_requests:
            if waiting:
                index, prompt = waiting.pop(0)
                engine.add_request(str(index), [*prompt, index], GREEDY)
            for output in engine.step():
                got[output.request_id] = output.outputs[0].token_ids
        engine.scheduler.check()
        tokens[device] = got
    assert tokens["cuda"] == tokens["cpu"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logprobs_in_16_bits_are_close_to_those_in_float32(checkpoint, dtype):
    folder = checkpoint("qwen3")
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=1, ignore_eos=True)
    expected = complete(folder, "cpu", params, dtype="float32")
    got = complete(folder, "cuda", params, dtype=dtype)
    same = [
        (ours.logprobs[0][token].logprob, theirs.logprobs[0][token].logprob)
        for ours, theirs in zip(got, expected, strict=True)
        for token in theirs.token_ids
        if ours.token_ids == [token]
    ]
    assert len(same) >= len(PROMPTS) // 2
    assert all(abs(ours - theirs) < 0.25 for ours, theirs in same)


@pytest.mark.parametrize("penalty", [1.0, 1.1])  # in the graph, and behind it
def test_seeded_samples_on_the_gpu_are_those_of_the_cpu(checkpoint, penalty):
    params = SamplingParams(
        seed=3, max_tokens=20, top_p=0.9, top_k=40, min_p=0.01, repetition_penalty=penalty
    )
    expected = complete(checkpoint("llama"), "cpu", params, dtype="float32")
    got = complete(checkpoint("llama"), "cuda", params, dtype="float32")
    assert [each.token_ids for each in got] == [each.token_ids for each in expected]


def test_the_process_keeps_to_its_share_of_the_gpu(checkpoint):
    device = torch.device("cuda")
    free_at_start = gpu_free(device)
    llm = LLM(str(checkpoint("qwen3")), device="cuda", gpu_memory_utilization=0.2)
    llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    memory = measure_memory(device, free_at_start)
    assert 0.15 < memory.used_by_process / memory.total < 0.21
