"""8-bit integer weights on a CPU: the fast product against the dequantized matrix."""

from dataclasses import replace

import pytest
import torch
from gguf import GGMLQuantizationType

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.engine import backends
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.loader import load_model
from minimal_vllm.model.quantization.int8 import (
    DIGIT,
    DIGITS,
    Int8Quantizer,
    Int8Weight,
    PackedInt8Weight,
    can_multiply_int8,
    multiply_digits,
    multiply_digits_of_one,
    two_digits,
)
from minimal_vllm.model.quantization.weight import QuantizedLinear, QuantizedWeight
from minimal_vllm.model.quantization_config import Int8OnTheFly, choose_quantization
from minimal_vllm.model.weight_bytes import weight_bytes
from tests.checkpoints import FAMILIES, write_checkpoint
from tests.gguf_files import write_gguf

CPU = torch.device("cpu")
needs_fbgemm = pytest.mark.skipif(not can_multiply_int8(), reason="FBGEMM needs AVX2")


def fill(weight, numbers):
    weight.to_empty(device=CPU)
    rows = Int8Quantizer(Int8OnTheFly()).read({"weight": numbers}, 1)
    for part, of_part in zip(weight.parts, range(len(weight.parts)), strict=True):
        sizes = list(weight.parts.values())
        weight.fill_part(part, {name: each.split(sizes)[of_part] for name, each in rows.items()})
    return weight


def make_pair(numbers):
    parts = {"a": len(numbers) - 16, "b": 16}
    plain, packed = (
        fill(kind(numbers.shape[1], parts), numbers) for kind in (Int8Weight, PackedInt8Weight)
    )
    packed.after_loading()
    return plain, packed


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@needs_fbgemm
@pytest.mark.parametrize("shape", [(48, 32), (49, 40), (256, 1536)])
@pytest.mark.parametrize("num_tokens", [1, 2, 7, 33])
def test_the_product_is_the_dequantized_matrix_s(shape, num_tokens):
    plain, packed = make_pair(random(*shape))
    x, bias = random(num_tokens, shape[1], seed=1), random(shape[0], seed=2)
    x[0, 3] = 50.0  # an outlier, which leaves fewer bits to the other numbers of its row
    for activation in (None, "silu") if shape[0] % 2 == 0 else (None,):
        expected = plain.multiply(x, bias, activation)
        error = packed.multiply(x, bias, activation) - expected
        assert error[0].norm() < 5e-3 * expected[0].norm()
        assert error[1:].norm() <= 5e-4 * expected[1:].norm()


@needs_fbgemm
def test_the_largest_sums_are_exact_without_overflow():
    """All activations and weights are as large as they get, which 16 bits must hold in pairs."""
    plain, packed = make_pair(torch.ones(48, 4096))
    for sign in (1.0, -1.0):
        x = torch.full((3, 4096), sign)
        torch.testing.assert_close(packed.product(x, None), plain.product(x, None))


@needs_fbgemm
def test_a_token_s_result_does_not_depend_on_its_neighbors():
    _, packed = make_pair(random(64, 96))
    x = random(9, 96, seed=1) * torch.logspace(-4, 4, 9)[:, None]
    together = packed.product(x, None)
    for row, alone in zip(together, x, strict=True):
        assert torch.equal(packed.product(alone[None], None)[0], row)


@needs_fbgemm
def test_nan_stays_in_its_row_and_zeros_give_zeros():
    _, packed = make_pair(random(64, 96))
    x = random(3, 96, seed=1)
    x[1, 5] = torch.nan
    x[2] = 0
    first, second, third = packed.product(x, None)
    assert first.isfinite().all()
    assert second.isnan().all()
    assert (third == 0).all()


@needs_fbgemm
def test_no_tokens_give_no_results():
    _, packed = make_pair(random(64, 96))
    assert packed.product(torch.empty(0, 96), None).shape == (0, 64)


@needs_fbgemm
def test_a_packed_matrix_can_be_read_back():
    plain, packed = make_pair(random(64, 96))
    assert not hasattr(packed, "weight")
    assert torch.equal(packed.dequantized(torch.float32), plain.dequantized(torch.float32))


def test_two_digits_have_13_bits():
    x = random(5, 100) * torch.logspace(-20, 20, 5)[:, None]
    largest = x.abs().amax(dim=1)[:, None, None]
    digits = two_digits(x[:, None], largest, DIGITS)
    assert digits.abs().max() <= DIGIT
    assert torch.equal(digits, digits.round())
    back = torch.bmm(DIGITS.values * largest, digits).squeeze(1)
    assert ((back - x).abs() <= largest[:, 0] * 2**-13).all()


@needs_fbgemm
@pytest.mark.parametrize("shape", [(48, 32), (49, 40), (256, 1536)])
def test_fewer_operations_for_one_token_give_the_same_sums(shape):
    _, packed = make_pair(random(*shape))
    for x in (random(1, shape[1], seed=1), torch.zeros(1, shape[1])):
        expected = multiply_digits(x, packed.packed, DIGITS)
        found = multiply_digits_of_one(x, packed.packed, DIGITS)
        assert (found - expected).abs().max() <= 2.0**-22 * expected.abs().max()


def test_rows_are_rounded_to_the_nearest_integers():
    numbers = random(32, 64) * torch.logspace(-6, 6, 32)[:, None]
    numbers[3] = 0
    weight = fill(Int8Weight(64, {"a": 32}), numbers)
    assert weight.weight.abs().max() == 127
    assert ((weight.dequantized(torch.float32) - numbers).abs() <= 0.501 * weight.scale).all()


@pytest.mark.parametrize("family", ["llama", "qwen2", "llama-mha-tied"])
@pytest.mark.parametrize("is_gguf", [False, True])
def test_a_model_has_the_log_probabilities_of_its_dequantized_matrices(tmp_path, family, is_gguf):
    checkpoint = tmp_path / "model.gguf"
    if is_gguf:
        write_gguf(checkpoint, FAMILIES[family], GGMLQuantizationType.Q8_0)
    else:
        checkpoint = write_checkpoint(tmp_path, FAMILIES[family])
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    texts = ["The rain in Spain", "and then, 12"]
    options = {"quantization": "int8", "dtype": "float32"}
    found, expected = (
        LLM(str(checkpoint), attention_backend=name, **options).generate(texts, params)
        for name in ("auto", "reference")
    )
    for fast, plain in zip(found, expected, strict=True):
        for token, one, other in zip(
            fast.prompt_token_ids[1:],
            fast.prompt_logprobs[1:],
            plain.prompt_logprobs[1:],
            strict=True,
        ):
            assert one[token].logprob == pytest.approx(other[token].logprob, abs=0.03)


@pytest.mark.parametrize("is_tied", [True, False])
def test_all_projections_and_the_head_are_quantized_but_not_the_embedding(tmp_path, is_tied):
    folder = write_checkpoint(
        tmp_path, FAMILIES["qwen3"] | {"tie_word_embeddings": is_tied, "torch_dtype": "float32"}
    )
    quantization = choose_quantization("int8", None)
    modules = backends.choose_modules("tiled", quantization, torch.float32, CPU)
    config = ModelConfig.from_checkpoint(folder)
    model = load_model(folder, config, torch.float32, CPU, modules=modules)
    assert isinstance(model.lm_head, QuantizedLinear)
    own = model.embed_tokens.weight
    back = model.lm_head.quantized.dequantized(torch.float32)
    assert own.dtype == torch.float32
    assert torch.allclose(back, own, atol=float(own.abs().max()) / 127) == is_tied
    kinds = {type(each) for each in model.modules() if isinstance(each, QuantizedWeight)}
    assert kinds == {backends.CPU_LAYOUTS.int8 if can_multiply_int8() else Int8Weight}


def test_the_bytes_of_a_model_are_those_of_its_integers():
    config = ModelConfig.from_dict(FAMILIES["llama"])
    hidden, inner, rows = 32, 64, 32 + 16 + 16
    integers = 3 * (rows * hidden + hidden * hidden + 3 * hidden * inner)
    scales = 3 * (rows + hidden + 2 * inner + hidden) + config.vocab_size
    head = config.vocab_size * hidden
    kept = config.num_parameters - integers - head
    expected = 2 * kept + integers + head + 4 * scales
    quantized = replace(config, quantization=choose_quantization("int8", None))
    assert weight_bytes(quantized, "bfloat16") == expected


@pytest.mark.parametrize(
    ("kind", "options", "is_int8"),
    [
        ("Q8_0", {}, True),
        ("Q4_0", {}, True),
        ("Q4_1", {}, False),
        ("BF16", {}, False),
        ("Q8_0", {"dtype": "float32"}, False),
        ("Q8_0", {"quantization": "fp8"}, False),
    ],
)
def test_a_cpu_keeps_8_bits_of_a_gguf_file_unless_a_dtype_is_asked_for(
    tmp_path, kind, options, is_int8
):
    path = tmp_path / "model.gguf"
    write_gguf(path, FAMILIES["llama"], GGMLQuantizationType[kind])
    llm = LLM(str(path), device="cpu", num_gpu_blocks_override=16, **options)
    found = llm.built.files.config.quantization
    assert (found is not None and found.method == "int8") == is_int8
    (output,) = llm.generate("and then", SamplingParams(max_tokens=4, ignore_eos=True))
    assert len(output.outputs[0].token_ids) == 4


def test_a_gpu_refuses_8_bit_integers():
    with pytest.raises(ValueError, match="'int8' is for CPUs: on a GPU, use 'fp8'"):
        backends.choose_modules(
            "auto", choose_quantization("int8", None), torch.bfloat16, torch.device("cuda")
        )
