"""The two layouts of quantized matrices in memory, and quantizing while loading."""

import pytest
import torch
from checkpoints import FAMILIES, random_weights, write_checkpoint

from minimal_vllm import LLM
from minimal_vllm.engine.backends import choose_modules
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.linear import Linear
from minimal_vllm.model.loader import init_random, load_model
from minimal_vllm.model.quantization.fp8 import Fp8BlockReader, Fp8Weight, quantize_rows
from minimal_vllm.model.quantization.int4 import Int4Weight, pack, unpack
from minimal_vllm.model.quantization.weight import QuantizedWeight
from minimal_vllm.model.quantization_config import (
    Fp8Blocks,
    Int4,
    choose_quantization,
)

CPU = torch.device("cpu")


def allocated(weight):
    """Give a weight that was made on the meta device or in the default dtype its memory."""
    return weight.to(CPU)


def test_packing_is_undone_by_unpacking():
    numbers = torch.randint(0, 16, (5, 96), generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack(pack(numbers)), numbers.to(torch.uint8))
    assert pack(numbers).shape == (5, 12)


def test_the_same_bits_of_four_words_hold_neighboring_columns():
    (words,) = pack(torch.arange(32)[None] // 4 + 8)
    assert [f"{word % 2**32:x}" for word in words.tolist()] == ["fedcba98"] * 4
    (words,) = pack(torch.arange(32)[None] % 4)
    assert [f"{word:08x}" for word in words.tolist()] == [str(i) * 8 for i in range(4)]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [32, None])
def test_a_weight_of_4_bits_is_number_minus_zero_times_scale(group_size, symmetric, ordered):
    torch.manual_seed(1)
    weight = Int4Weight(64, {"a": 3, "b": 5}, Int4(group_size, symmetric, ordered))
    numbers = torch.randint(0, 16, (8, 64))
    groups = 64 // (group_size or 64)
    scale, zero = torch.rand(8, groups), torch.randint(0, 16, (8, groups))
    order = torch.randperm(64)
    for part, rows in {"a": slice(0, 3), "b": slice(3, 8)}.items():
        tensors = {"packed": pack(numbers[rows]), "scale": scale[rows]}
        tensors |= {} if symmetric else {"zero": zero[rows]}
        tensors |= {"order": order} if ordered else {}
        weight.fill_part(part, tensors)
    expected = torch.empty(8, 64)
    for row in range(8):
        for column in range(64):
            group = column // (group_size or 64)
            middle = 8 if symmetric else zero[row, group]
            to = order[column] if ordered else column
            expected[row, to] = (numbers[row, column] - middle) * scale[row, group]
    torch.testing.assert_close(weight.dequantized(torch.float32), expected)


@pytest.mark.parametrize("sizes", [{"a": 128, "b": 256}, {"a": 192, "b": 64}, {"a": 50, "b": 7}])
def test_blocks_that_end_within_a_part_or_column_are_cut(sizes):
    torch.manual_seed(2)
    in_size, reader = 200, Fp8BlockReader(Fp8Blocks())
    weight = Fp8Weight(in_size, sizes, (128, 128))
    expected = []
    for part, rows in sizes.items():
        numbers = torch.randn(rows, in_size).to(torch.float8_e4m3fn)
        scale = torch.rand(-(-rows // 128), 2)
        assert reader.tensors(rows, in_size)["weight_scale"].shape == scale.shape
        raw = {"weight": numbers, "weight_scale": scale}
        weight.fill_part(part, reader.read(raw, weight.rows_per_scale))
        wide = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :in_size]
        expected.append(numbers.float() * wide)
    torch.testing.assert_close(weight.dequantized(torch.float32), torch.cat(expected))


def test_quantizing_a_row_loses_no_more_than_3_bits_of_mantissa_do():
    numbers = torch.randn(7, 300, generator=torch.Generator().manual_seed(3))
    numbers[3] = 0
    stored, scale = quantize_rows(numbers)
    back = stored.float() * scale
    assert (back - numbers).abs().le(numbers.abs() / 16 + scale * 2**-9).all()
    assert back[3].eq(0).all()


@pytest.mark.parametrize("name", ["qwen3", "llama-mqa-biases", "llama-gelu"])
def test_a_model_quantized_while_it_is_loaded_keeps_all_but_its_projections(tmp_path, name):
    folder, weights = write_checkpoint(tmp_path, FAMILIES[name]), random_weights(FAMILIES[name])
    config = ModelConfig.from_checkpoint(folder)
    modules = choose_modules("tiled", choose_quantization("fp8", None), torch.float32, CPU)
    model = load_model(folder, config, torch.float32, CPU, modules=modules)
    assert type(model.lm_head) is Linear
    for path, module in model.named_modules():
        if isinstance(module, QuantizedWeight):
            parent = path.removesuffix(".quantized").rpartition(".")[0]
            parts = [weights[f"model.{parent}.{part}.weight"] for part in module.parts]
            back, whole = module.dequantized(torch.float32), torch.cat(parts)
            assert module.weight.dtype == torch.float8_e4m3fn
            assert (back - whole).norm() < 0.04 * whole.norm()
    biases = [key for key in weights if key.endswith("q_proj.bias")]
    for key in biases:
        own = model.get_submodule(key.removeprefix("model.").rpartition(".q_proj")[0]).qkv_proj
        assert torch.equal(own.bias[: len(weights[key])], weights[key])


def test_random_weights_for_measurements_are_of_the_usual_size(tmp_path):
    folder = write_checkpoint(tmp_path, FAMILIES["qwen3"] | {"intermediate_size": 128})
    config = ModelConfig.from_checkpoint(folder)
    modules = choose_modules("tiled", choose_quantization("fp8", None), torch.float32, CPU)
    model = load_model(folder, config, torch.float32, CPU, modules=modules)
    init_random(model, seed=0)
    for module in model.modules():
        if isinstance(module, QuantizedWeight):
            assert 0.01 < module.dequantized(torch.float32).std() < 0.03


def test_the_option_must_agree_with_the_checkpoint(tmp_path):
    folder = write_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="quantization is 'awq', but the checkpoint isn't"):
        LLM(str(folder), quantization="awq", num_gpu_blocks_override=16)
    assert choose_quantization(None, None) is None
    found = choose_quantization("fp8", None)
    assert choose_quantization("fp8", found) is found
    with pytest.raises(ValueError, match="already quantized with 'fp8': leave the option out"):
        choose_quantization("gptq", found)
