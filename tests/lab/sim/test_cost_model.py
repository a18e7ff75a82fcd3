from dataclasses import replace

import pytest

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.layer_config import LayerConfig
from minimal_vllm_lab.sim.config import Achieved
from minimal_vllm_lab.sim.cost_model import LinearCostModel, RooflineCostModel
from minimal_vllm_lab.sim.hardware import GPUS, Gpu
from minimal_vllm_lab.sim.load import StepLoad
from minimal_vllm_lab.sim.presets import PRESETS
from tests.lab.sim.simulated import COSTS

QWEN = ModelConfig.from_dict(PRESETS["qwen3-8b"])
ALL_OF_IT = Achieved(
    bandwidth_fraction=1, matmul_fraction=1, attention_fraction=1, step_overhead_ms=0
)
GPU = GPUS["h200"]


def decode(num_requests, context):
    tokens = num_requests * context
    return StepLoad(num_requests, num_requests, num_requests, tokens, tokens)


def prompt(num_tokens):
    pairs = num_tokens * (num_tokens + 1) // 2
    return StepLoad(1, num_tokens, 1, num_tokens, pairs)


def seconds(load, model=QWEN, gpu=GPU, achieved=ALL_OF_IT, kv_itemsize=2):
    return RooflineCostModel(model, gpu, achieved, 2, kv_itemsize).seconds(load)


def test_one_token_takes_as_long_as_reading_the_weights():
    weights = 2 * (QWEN.num_parameters - QWEN.vocab_size * QWEN.hidden_size)
    assert seconds(decode(1, 1)) == pytest.approx(weights / 4.8e12, rel=0.001)


def test_a_token_reads_4_bits_of_each_number_of_its_own_experts_and_16_of_all_others():
    model = ModelConfig.from_dict(PRESETS["gpt-oss-20b"])
    experts = 24 * 4 * 3 * 2880 * 2880  # 4 of 32 in each layer
    others = 2 * (model.expected_parameters(1) - experts - 201_088 * 2880)
    read = experts * (4 + 8 / 32) / 8 + others
    assert seconds(decode(1, 1), model) == pytest.approx(read / 4.8e12, rel=0.002)


def test_tied_embeddings_are_read_as_the_head_only():
    untied = seconds(decode(1, 1))
    assert seconds(decode(1, 1), replace(QWEN, tie_word_embeddings=True)) == pytest.approx(untied)


def test_a_long_prompt_takes_as_long_as_its_arithmetic():
    head = QWEN.vocab_size * QWEN.hidden_size
    load = StepLoad(1, 8192, 1, 0, 0)
    multiply_adds = (QWEN.num_parameters - 2 * head) * 8192
    matmuls = 2 * multiply_adds / 989e12 + 2 * head / 4.8e12
    activations = seconds(load) - matmuls
    assert 0 < activations < 0.15 * matmuls


def test_attention_to_long_contexts_reads_each_key_and_value_once():
    more = seconds(decode(64, 30_000)) - seconds(decode(64, 10_000))
    kv_bytes = QWEN.kv_bytes_per_token("bfloat16")
    assert more == pytest.approx(64 * 20_000 * kv_bytes / 4.8e12)
    fp8 = seconds(decode(64, 30_000), kv_itemsize=1) - seconds(decode(64, 10_000), kv_itemsize=1)
    assert fp8 == pytest.approx(more / 2)


def test_attention_within_a_prompt_is_arithmetic():
    flops = 4 * 36 * 32 * 128 * 32768**2 / 2
    linear = seconds(StepLoad(1, 32768, 1, 0, 0))
    assert seconds(prompt(32768)) - linear == pytest.approx(flops / 989e12, rel=0.01)


def test_a_lower_achieved_fraction_takes_longer():
    load = decode(8, 1000)
    slower = {
        "bandwidth_fraction": 0.5,
        "matmul_fraction": 0.5,
        "attention_fraction": 0.5,
        "step_overhead_ms": 2.0,
    }
    both = StepLoad(*map(sum, zip(load, prompt(8192), strict=True)))
    for name, value in slower.items():
        assert seconds(both, achieved=replace(ALL_OF_IT, **{name: value})) > seconds(both)
    overhead = seconds(load, achieved=replace(ALL_OF_IT, step_overhead_ms=2.0)) - seconds(load)
    assert overhead == pytest.approx(0.002)


def test_twice_the_gpu_takes_half_the_time():
    double = Gpu(2 * GPU.tflops, 2 * GPU.bandwidth, GPU.memory_gib, GPU.source)
    for load in (decode(8, 1000), prompt(1000)):
        assert seconds(load, gpu=double) == pytest.approx(seconds(load) / 2)


def test_layers_with_a_window_read_no_more_than_it_sees():
    """All layers but 6 of 36 have a window of 1000 tokens; contexts have 9000, or 500."""
    sliding = (LayerConfig(window=1000, rope=True),) * 30
    windowed = replace(QWEN, layers=(*sliding, *QWEN.layers[30:]))
    saved = seconds(decode(64, 9000)) - seconds(decode(64, 9000), windowed)
    per_layer = QWEN.kv_bytes_per_token("bfloat16") / 36
    assert saved == pytest.approx(64 * 8000 * 30 * per_layer / 4.8e12)
    assert seconds(decode(64, 500), windowed) == pytest.approx(seconds(decode(64, 500)))
    pairs_saved = 32768**2 / 2 - 32768 * 1000
    saved = seconds(prompt(32768)) - seconds(prompt(32768), windowed)
    assert saved == pytest.approx(30 * 4 * 32 * 128 * pairs_saved / 989e12, rel=0.01)


def test_a_fitted_model_is_the_same_after_saving(tmp_path):
    COSTS.save(tmp_path / "costs.json")
    assert LinearCostModel.load(tmp_path / "costs.json") == COSTS
    load = StepLoad(2, 3, 5, 7, 11)
    assert COSTS.seconds(load) == pytest.approx(
        1e-3 + 2 * 1e-5 + 3 * 3e-6 + 5 * 1e-5 + 7 * 1e-7 + 11 * 1e-9
    )


@pytest.mark.parametrize("text", ["[]", "{", '{"per_step": 1}', '{"per_step": -1}'])
def test_a_file_without_a_cost_model_is_rejected(tmp_path, text):
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(ValueError, match=r"per_|JSON"):
        LinearCostModel.load(tmp_path / "costs.json")


def test_a_step_with_prompts_waits_for_its_launches_and_one_of_decodes_does_not():
    launching = replace(ALL_OF_IT, launch_ms_per_layer=0.5)
    assert seconds(prompt(10), achieved=launching) == pytest.approx(0.5e-3 * QWEN.num_layers)
    assert seconds(prompt(8192), achieved=launching) == seconds(prompt(8192)) > 0.018
    assert seconds(decode(8, 10), achieved=launching) == seconds(decode(8, 10)) < 0.018


def test_each_row_of_logits_is_written_once_and_read_three_times():
    prompt_of = [StepLoad(1, 300, num_samples, 0, 0) for num_samples in (1, 65)]
    one, many = map(seconds, prompt_of)
    assert many - one == pytest.approx(64 * 4 * QWEN.vocab_size * 2 / 4.8e12)


def test_only_a_batch_waits_between_the_general_kernels():
    waiting = replace(ALL_OF_IT, batch_us_per_layer=20)
    for load in (decode(2, 100), prompt(100)):
        more = seconds(load, achieved=waiting) - seconds(load)
        assert more == pytest.approx(20e-6 * QWEN.num_layers)
    assert seconds(decode(1, 100), achieved=waiting) == seconds(decode(1, 100))


def test_kernels_wait_until_a_prompt_is_admitted():
    admitting = replace(ALL_OF_IT, admission_us_per_token=0.1)
    for load in (prompt(10), prompt(8192)):
        more = seconds(load._replace(admitted=50_000), achieved=admitting) - seconds(load)
        assert more == pytest.approx(0.005)


def test_the_first_step_after_idling_takes_longer():
    starting = replace(ALL_OF_IT, idle_start_ms=2)
    assert seconds(prompt(10), achieved=starting) == seconds(prompt(10))
    more = seconds(prompt(10)._replace(admitted=10), achieved=starting) - seconds(prompt(10))
    assert more == pytest.approx(0.002)


def test_shared_tokens_are_not_read_again_but_still_multiplied():
    num_pairs = 63 * 2048
    apart = decode(64, 2100)
    saved = seconds(apart) - seconds(apart.with_shared(num_pairs))
    read = num_pairs * QWEN.kv_bytes_per_token("bfloat16") / 4.8e12
    multiplied = num_pairs * 4 * 36 * 32 * 128 / 989e12
    assert saved == pytest.approx(read - multiplied)
