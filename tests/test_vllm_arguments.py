"""Arguments that vLLM has: accepted where they change nothing, refused where they would."""

from dataclasses import fields

import pytest

from minimal_vllm import LLM, EngineArgs, SamplingParams, TextPrompt, TokensPrompt
from minimal_vllm.config import EngineConfig
from minimal_vllm.lora.request import LoRARequest
from minimal_vllm.utils.argparse_utils import FlexibleArgumentParser
from minimal_vllm.vllm_arguments import ENGINE, OFFLINE, REQUEST, SAMPLING, drop_neutral

LM_EVAL = {
    "revision": None,
    "dtype": "auto",
    "tokenizer": None,
    "tokenizer_mode": "auto",
    "tokenizer_revision": None,
    "trust_remote_code": False,
    "tensor_parallel_size": 1,
    "max_model_len": None,
    "max_num_seqs": None,
    "quantization": None,
    "seed": 1234,
    "enable_lora": False,
    "max_lora_rank": 16,
}
"""What lm-evaluation-harness 0.4.13 passes to ``LLM``."""

VLLM_ENGINE_DEFAULTS = {
    "runner": "auto",
    "convert": "auto",
    "allowed_local_media_path": "",
    "kv_cache_dtype": "auto",
    "swap_space": 4,
    "cpu_offload_gb": 0,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "distributed_executor_backend": None,
    "disable_custom_all_reduce": False,
    "disable_log_stats": True,
    "hf_overrides": None,
    "compilation_config": None,
    "structured_outputs_config": None,
    "enable_prefix_caching": None,
    "enable_chunked_prefill": None,
    "block_size": None,
    "load_format": "safetensors",
    "limit_mm_per_prompt": {},
    "speculative_config": None,
    "logits_processors": None,
    "model_impl": "auto",
    "config_format": "auto",
    "max_logprobs": 20,
    "logprobs_mode": "raw_logprobs",
    "override_generation_config": {},
    "long_prefill_token_threshold": 0,
    "stream_interval": 1,
    "use_tqdm_on_load": True,
}


def test_an_object_is_accepted_key_by_key():
    group = ENGINE["structured_outputs_config"]
    for neutral in ({}, {"backend": "xgrammar"}, {"backend": None, "disable_fallback": True}):
        group.check("structured_outputs_config", neutral)
    for value in ({"backend": "outlines"}, {"backend": "auto", "other": 1}, ["auto"], "auto"):
        with pytest.raises(ValueError, match="llguidance"):
            group.check("structured_outputs_config", value)


@pytest.mark.parametrize("arguments", [LM_EVAL, VLLM_ENGINE_DEFAULTS])
def test_an_engine_takes_vllms_arguments_at_their_defaults(checkpoint, arguments):
    llm = LLM(str(checkpoint("llama")), num_gpu_blocks_override=32, **arguments)
    assert llm.llm_engine.model_config.max_model_len == 512


def test_sampling_takes_vllms_arguments_at_their_defaults():
    given = SamplingParams(
        best_of=None,
        use_beam_search=False,
        spaces_between_special_tokens=True,
        flat_logprobs=False,
        extra_args=None,
        logits_processors=None,
        truncate_prompt_tokens=None,
    )
    assert given == SamplingParams()


@pytest.mark.parametrize(
    ("make", "arguments", "sentence"),
    [
        (EngineConfig, {"quantization": "torchao"}, "quantization: should be 'fp8', .*'torchao'"),
        (EngineConfig, {"calculate_kv_scales": True}, "not supported: the KV cache holds"),
        (EngineConfig, {"pipeline_parallel_size": 2}, "not supported: one machine runs the model"),
        (EngineConfig, {"enable_lora": True}, "LoRA adapters can't be loaded"),
        (EngineConfig, {"rope_scaling": {"type": "yarn"}}, "with hf_overrides"),
        (EngineConfig, {"tensor_paralel_size": 1}, "tensor_paralel_size is not a known argument"),
        (EngineConfig, {"max_num_seq": 1}, "did you mean max_num_seqs"),
        (SamplingParams, {"best_of": 2}, "best_of=2 is not supported: every completion is"),
        (SamplingParams, {"temprature": 1}, "not a known argument; did you mean temperature"),
        (
            SamplingParams,
            {"prompt_logprob_token_ids": [5]},
            "prompt_logprob_token_ids=.5. is not supported",
        ),
    ],
)
def test_an_argument_that_would_change_something_is_refused_in_one_sentence(
    make, arguments, sentence
):
    model = {"model": "m"} if make is EngineConfig else {}
    with pytest.raises(ValueError, match=sentence) as caught:
        make(**model, **arguments)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("supported", "unsupported"), [(EngineConfig, ENGINE), (SamplingParams, SAMPLING)]
)
def test_no_argument_is_both_a_field_and_unsupported(supported, unsupported):
    assert {field.name for field in fields(supported)} & unsupported.keys() == set()


@pytest.mark.parametrize("group", [ENGINE, OFFLINE, REQUEST, SAMPLING])
def test_what_is_empty_changes_nothing_for_any_argument(group):
    for nothing in (None, {}, [], "", (), [None, None]):
        assert drop_neutral(dict.fromkeys(group, nothing), group) == {}


def test_an_object_that_cant_be_compared_is_refused_not_a_crash():
    class Array:
        def __eq__(self, other):
            raise TypeError

        __hash__ = None

    with pytest.raises(ValueError, match="not supported"):
        drop_neutral({"quantization_config": Array()}, ENGINE)


def test_a_scripts_arguments_make_an_engine(checkpoint):
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    parser.set_defaults(model=str(checkpoint("llama")))
    typed = ["--max_model_len", "64", "--no-enable-prefix-caching", "--quantization=none"]
    arguments = parser.parse_args([*typed, "--num-gpu-blocks-override=32", "--dtype", "float"])
    llm = LLM(**vars(arguments))
    assert (llm.config.max_model_len, llm.config.enable_prefix_caching) == (64, False)
    assert EngineArgs.from_cli_args(arguments).dtype == llm.config.dtype == "float32"
    with pytest.raises(ValueError, match="calculate_kv_scales=True is not supported"):
        EngineArgs.from_cli_args(parser.parse_args(["--calculate-kv-scales"]))


@pytest.fixture(scope="module")
def llm(checkpoint):
    return LLM(str(checkpoint("qwen3")), num_gpu_blocks_override=32, scheduling_policy="priority")


ONE = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


def test_prompts_have_vllms_types(llm):
    ids = llm.tokenizer.encode("the rain")
    prompts = [TextPrompt(prompt="the rain"), TokensPrompt(prompt_token_ids=ids)]
    text, tokens = llm.generate(prompts, ONE, use_tqdm=False, lora_request=None, priority=3)
    assert text.outputs[0].token_ids == tokens.outputs[0].token_ids
    multi_modal = {"prompt": "the rain", "multi_modal_data": None}
    assert llm.generate(multi_modal, ONE, use_tqdm=False)[0].prompt_token_ids == ids


def test_a_request_argument_that_would_change_something_is_refused(llm):
    with pytest.raises(ValueError, match=r"tokenization_kwargs=.* is not supported"):
        llm.generate("a", ONE, tokenization_kwargs={"truncation": True})
    with pytest.raises(TypeError, match="unexpected keyword argument 'prioritty'"):
        llm.generate("a", ONE, prioritty=1)
    with pytest.raises(ValueError, match="LoRA adapters can't be loaded"):
        LoRARequest("name", 1, "path")


def test_without_detokenizing_log_probabilities_have_no_text_either(llm):
    params = SamplingParams(
        max_tokens=2, logprobs=1, prompt_logprobs=1, detokenize=False, ignore_eos=True
    )
    (output,) = llm.generate("the rain", params, use_tqdm=False)
    positions = [*output.outputs[0].logprobs, *output.prompt_logprobs[1:]]
    assert output.outputs[0].text == ""
    assert {each.decoded_token for position in positions for each in position.values()} == {None}


def test_defaults_of_sampling_can_be_overridden(checkpoint):
    llm = LLM(
        str(checkpoint("llama")),
        num_gpu_blocks_override=32,
        override_generation_config={"temperature": 0.5, "max_new_tokens": 7},
    )
    params = llm.get_default_sampling_params()
    assert (params.temperature, params.max_tokens) == (0.5, 7)
    with pytest.raises(ValueError, match="temperatur is not read from a generation config"):
        LLM(str(checkpoint("llama")), override_generation_config={"temperatur": 0.5})


def test_the_models_configuration_can_be_overridden(checkpoint):
    folder = str(checkpoint("llama"))
    llm = LLM(folder, num_gpu_blocks_override=64, hf_overrides={"max_position_embeddings": 100})
    assert llm.model_config.max_model_len == 100
