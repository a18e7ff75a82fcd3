"""Two processes that compute a quantized model. How two and four divide it is tested with threads,
in tests/model/test_divided_quantized.py."""

import pytest

from minimal_vllm import LLM, SamplingParams
from tests.model.test_divided_quantized import SHAPE, STORED, write

PROMPTS = [[(7 * i * i + 31 * length + 3) % 250 for i in range(length)] for length in (40, 5)]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
OPTIONS = {"num_gpu_blocks_override": 24, "max_model_len": 128, "dtype": "float32"}


def check_tokens(path, **options):
    options = {**OPTIONS, **options}
    several, one = LLM(path, tensor_parallel_size=2, **options), LLM(path, **options)
    for params in (GREEDY, SamplingParams(max_tokens=12, seed=5, ignore_eos=True)):
        found, expected = (
            [each.outputs[0].token_ids for each in llm.generate(PROMPTS, params, use_tqdm=False)]
            for llm in (several, one)
        )
        assert found == expected


@pytest.mark.parametrize("stored", ["fp8-blocks", "fp8-channel", "gptq", "awq"])
def test_stored_weights_give_the_tokens_of_one_process(tmp_path, stored):
    path = str(write(tmp_path, SHAPE, STORED[stored]))
    check_tokens(path, skip_tokenizer_init=True)


@pytest.mark.parametrize("method", ["fp8", "int8"])
def test_weights_that_are_quantized_while_loading_do_too(checkpoint, method):
    check_tokens(str(checkpoint("llama-mha-tied")), quantization=method)


def test_experts_in_mxfp4_do_too(checkpoint):
    check_tokens(str(checkpoint("gpt-oss-mxfp4")))
