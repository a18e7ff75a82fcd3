"""Processes that compute a quantized model together. How they divide it is tested with threads, in
tests/model/test_divided_quantized.py."""

import pytest

from minimal_vllm import LLM, SamplingParams
from tests.model.test_divided_quantized import SHAPE, STORED, write

PROMPTS = [[(7 * i * i + 31 * length + 3) % 250 for i in range(length)] for length in (40, 5)]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
OPTIONS = {"num_gpu_blocks_override": 24, "max_model_len": 128, "dtype": "float32"}


def check_tokens(path, count, **options):
    options = {**OPTIONS, **options}
    several, one = LLM(path, tensor_parallel_size=count, **options), LLM(path, **options)
    for params in (GREEDY, SamplingParams(max_tokens=12, seed=5, ignore_eos=True)):
        found, expected = (
            [each.outputs[0].token_ids for each in llm.generate(PROMPTS, params, use_tqdm=False)]
            for llm in (several, one)
        )
        assert found == expected


@pytest.mark.parametrize(
    ("stored", "count"), [("fp8-blocks", 4), ("fp8-channel", 2), ("gptq", 4), ("awq", 2)]
)
def test_stored_weights_give_the_tokens_of_one_process(tmp_path, stored, count):
    path = str(write(tmp_path, SHAPE, STORED[stored]))
    check_tokens(path, count, skip_tokenizer_init=True)


@pytest.mark.parametrize(("method", "count"), [("fp8", 2), ("int8", 4)])
def test_weights_that_are_quantized_while_loading_do_too(checkpoint, method, count):
    check_tokens(str(checkpoint("llama-mha-tied")), count, quantization=method)


def test_experts_in_mxfp4_do_too(checkpoint):
    check_tokens(str(checkpoint("gpt-oss-mxfp4")), 2)
