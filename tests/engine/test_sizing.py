from dataclasses import replace

import pytest
import torch
from checkpoints import FAMILIES, QUANTIZED, write_json

from minimal_vllm import LLM
from minimal_vllm.cache.layer_groups import group_layers
from minimal_vllm.cache.memory import DeviceMemory
from minimal_vllm.config import EngineConfig
from minimal_vllm.engine import sizing
from minimal_vllm.model.config import ModelConfig

ONE = group_layers([None] * 3, max_model_len=512)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MIB = 2**20


@pytest.fixture
def model(tmp_path):
    """3 layers, 2 kv heads of 16, 4 heads, hidden 32, MLP 64, vocabulary 288, 512 positions."""
    write_json(tmp_path / "config.json", FAMILIES["qwen3"])
    return ModelConfig.from_checkpoint(tmp_path)


def config(**options):
    return EngineConfig(model="x", **options)


@pytest.mark.parametrize(
    ("dtype", "block_size", "expected"),
    [
        (torch.float32, 16, 3 * 2 * 2 * 16 * 4 * 16),  # layers, k and v, heads, dim, bytes, tokens
        (torch.bfloat16, 16, 3 * 2 * 2 * 16 * 2 * 16),
        (torch.float16, 1, 3 * 2 * 2 * 16 * 2),
    ],
)
def test_a_blocks_bytes_are_those_of_all_its_layers(model, dtype, block_size, expected):
    assert sizing.kv_block_bytes(config(block_size=block_size), model, ONE, dtype) == expected


def test_activations_are_those_of_the_widest_layer_and_the_logits(model):
    per_token = 3 * 32 + max(3 * 64, 8 * 64)
    logits = 60 * 288 * 300
    assert sizing.estimate_activations(model, 4, 100, 300) == (100 * per_token * 4 + logits)


@pytest.mark.parametrize(
    ("options", "device_type", "expected_share"),
    [({}, "cpu", 0.5), ({}, "cuda", 0.9), ({"gpu_memory_utilization": 0.25}, "cuda", 0.25)],
)
def test_blocks_fill_the_share_less_weights_and_activations(
    model, options, device_type, expected_share
):
    memory = DeviceMemory(device_type, total=1000 * MIB, free=990 * MIB, used_by_process=10 * MIB)
    activations = sizing.estimate_activations(model, 4, 2048, 256)
    expected = (int(expected_share * 1000 * MIB) - 10 * MIB - activations) // 12288
    assert sizing.kv_block_bytes(config(), model, ONE, torch.float32) == 12288
    blocks = sizing.choose_num_blocks(config(**options), model, ONE, torch.float32, memory, 2048)
    assert blocks == expected > 10_000


def test_a_gpu_leaves_room_for_the_experts_that_it_unpacks(monkeypatch):
    model = ModelConfig.from_dict(QUANTIZED["gpt-oss-mxfp4"])
    assert sizing.unpacked_bytes(model, 2) == 5 * 2 * 64 * 32 * 2  # gate and up of 5 experts
    plain = replace(model, quantization=None)
    assert sizing.unpacked_bytes(plain, 2) == 0
    monkeypatch.setattr(sizing, "kv_block_bytes", lambda *_: 1)
    groups = sizing.choose_groups(model, 128)
    for device, difference in (("cuda", sizing.unpacked_bytes(model, 4)), ("cpu", 0)):
        memory = DeviceMemory(device, 1 << 34, 1 << 34, 0)
        counts = [
            sizing.choose_num_blocks(config(), each, groups, torch.float32, memory, 64)
            for each in (plain, model)
        ]
        assert counts[0] - counts[1] == difference


def test_an_override_needs_no_memory(model):
    nothing = DeviceMemory("cpu", total=0, free=0, used_by_process=0)
    options = config(num_gpu_blocks_override=7)
    assert sizing.choose_num_blocks(options, model, ONE, torch.float32, nothing, 2048) == 7


def test_too_little_memory_is_an_error_that_says_where_it_went(model):
    memory = DeviceMemory("cpu", total=100 * MIB, free=20 * MIB, used_by_process=60 * MIB)
    with pytest.raises(ValueError, match=r"no memory is left .* 50% of 0.10 GiB, .* 0.02 GiB are"):
        sizing.choose_num_blocks(config(), model, ONE, torch.float32, memory, 2048)


def test_a_model_that_cannot_be_loaded_is_not_said_to_leave_less_than_nothing(model):
    memory = DeviceMemory("cuda", total=100 * MIB, free=-20 * MIB, used_by_process=120 * MIB)
    with pytest.raises(ValueError, match=r"0.00 GiB are free; .* or choose a smaller model"):
        sizing.choose_num_blocks(config(), model, ONE, torch.float32, memory, 2048)


def test_weights_larger_than_what_is_free_are_refused(model):
    weights = 4 * model.num_parameters
    sizing.check_weights_fit(model, torch.float32, DeviceMemory("cpu", 2**30, weights, 0))
    with pytest.raises(ValueError, match=r"its weights take .* in float32, .* the cpu's 1.00 GiB"):
        sizing.check_weights_fit(model, torch.float32, DeviceMemory("cpu", 2**30, weights - 1, 0))


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(tmp_path):
    write_json(tmp_path / "config.json", FAMILIES["llama"] | {"hidden_size": 2**20})
    with pytest.raises(ValueError, match="the model does not fit"):
        LLM(str(tmp_path), skip_tokenizer_init=True)


def test_the_models_length_is_the_limit(model):
    assert sizing.choose_model_len(config(), model) == 512
    assert sizing.choose_model_len(config(max_model_len=100), model) == 100
    with pytest.raises(ValueError, match=r"max_model_len is 513, .* only 512 positions"):
        sizing.choose_model_len(config(max_model_len=513), model)


def test_a_default_length_is_lowered_to_what_the_pool_holds(caplog):
    lowered = sizing.choose_scheduler_config(config(), ONE, 512, 2048, num_blocks=4)
    assert lowered.max_model_len == 64
    assert "lowering max_model_len from 512" in caplog.text
    asked_for = sizing.choose_scheduler_config(
        config(max_model_len=512), ONE, 512, 2048, num_blocks=4
    )
    assert asked_for.max_model_len == 512  # the scheduler refuses it


def test_windows_let_a_pool_hold_longer_requests():
    """40 blocks of 4 tokens. A window of 8 holds 2 behind it, 1 to begin in, and two steps' 4."""
    groups = group_layers([None, 8, 8], max_model_len=512)
    options = config(block_size=4, max_num_seqs=8)
    limits = sizing.choose_scheduler_config(options, groups, 512, 8, num_blocks=40)
    assert limits.windows == (None, 8, 8)
    assert limits.max_model_len == (40 - 2 * (2 + 1 + 4)) * 4
    assert limits.max_blocks_for(limits.max_model_len) == 40 < limits.max_blocks_for(105)
    held = 26 + 2 * 3  # once the prompt is computed
    assert limits.blocks_held_for(104) == held
    assert sizing.count_fitting_tokens(limits, 1000 * held) == 1000 * 104


def test_a_pool_with_fewer_blocks_than_groups_is_refused():
    groups = group_layers([None, 8, 8], max_model_len=512)
    with pytest.raises(ValueError, match=r"2 blocks, .* one in each of the model's 3 groups"):
        sizing.choose_scheduler_config(config(), groups, 512, 2048, num_blocks=2)


def test_a_block_has_room_for_the_layers_of_one_group(model):
    whole = sizing.kv_block_bytes(config(), model, ONE, torch.float32)
    groups = group_layers([None, 8, 8], max_model_len=512)
    assert sizing.kv_block_bytes(config(), model, groups, torch.float32) == whole // 3


def test_the_scheduler_gets_what_the_user_chose():
    chosen = sizing.choose_scheduler_config(
        config(
            block_size=8,
            max_num_seqs=3,
            enable_prefix_caching=False,
            enable_chunked_prefill=False,
            scheduling_policy="priority",
        ),
        *(ONE, 512, 600, 100),
    )
    assert (chosen.block_size, chosen.max_num_seqs, chosen.policy) == (8, 3, "priority")
    assert (chosen.max_model_len, chosen.max_num_batched_tokens) == (512, 600)
    assert not chosen.enable_prefix_caching
    assert not chosen.enable_chunked_prefill


@pytest.mark.parametrize(
    ("options", "model_len", "device", "expected"),
    [
        ({}, 512, CPU, 2048),
        ({}, 512, CUDA, 8320),
        ({"max_num_seqs": 5000}, 512, CPU, 5000),
        ({}, 40_000, CPU, 2048),
        ({"enable_chunked_prefill": False}, 40_000, CPU, 40_000),
        ({"max_num_batched_tokens": 300}, 512, CPU, 300),
    ],
)
def test_the_token_budget_suits_the_other_limits(options, model_len, device, expected):
    assert sizing.choose_batched_tokens(config(**options), model_len, device.type) == expected


def test_a_large_gpu_has_a_larger_token_budget_by_default():
    def choose(**options):
        return sizing.choose_batched_tokens(config(**options), 512, "cuda", memory=80 * 2**30)

    assert (choose(), choose(max_num_batched_tokens=300)) == (16_640, 300)


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", CPU, torch.float32),
        ("auto", CUDA, torch.bfloat16),
        ("float16", CPU, torch.float16),
    ],
)
def test_auto_is_the_checkpoints_dtype_where_that_is_fast(name, device, expected):
    assert sizing.choose_dtype(name, "bfloat16", device) is expected


@pytest.mark.parametrize(("has_gpu", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_if_there_is_one(monkeypatch, has_gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert sizing.choose_device("auto").type == expected
    assert sizing.choose_device("cpu") == CPU
