"""A layer in one function against the layer of separate modules."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.attention import tiled
from minimal_vllm.engine import backends
from minimal_vllm.model import scripted_layer
from minimal_vllm.model.cpu_modules import with_fewer_calls
from minimal_vllm.model.layers import DecoderLayer, SelfAttention
from minimal_vllm.model.packed_linear import can_pack
from minimal_vllm.model.scripted_layer import ScriptedLayer, decode_layer
from tests.checkpoints import FAMILIES, random_weights, write_checkpoint, write_weights

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="FBGEMM needs AVX2")
KNOWN = ["llama", "qwen2", "qwen3", "mistral-window", "llama-mha-tied"]
UNKNOWN = ["olmo2", "gpt-oss", "gemma2"]
NUM_TOKENS = 40


@pytest.fixture
def calls(monkeypatch):
    """Number of calls of each scripted function."""
    counter = Counter()

    def counted(function):
        counter[function.__name__] += 1
        return function

    monkeypatch.setattr(scripted_layer, "scripted", counted)
    return counter


def complete(folder, texts=("The rain in Spain",), **options):
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0)
    llm = LLM(str(folder), dtype="float32", device="cpu", num_gpu_blocks_override=64, **options)
    return [output.outputs[0] for output in llm.generate(list(texts), params)]


def write_packable(folder, family):
    """Write a checkpoint whose weights half precision holds exactly."""
    write_checkpoint(folder, FAMILIES[family])
    weights = random_weights(FAMILIES[family])
    write_weights(folder, {name: weight.half().float() for name, weight in weights.items()})
    return folder


def num_layers(family):
    return FAMILIES[family]["num_hidden_layers"]


@pytest.mark.parametrize("family", KNOWN)
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_request_gets_the_tokens_of_separate_modules(
    tmp_path, monkeypatch, calls, family, quantization
):
    folder = write_packable(tmp_path, family)
    found = complete(folder, quantization=quantization)
    is_known = not (family == "qwen2" and quantization)  # whose 8-bit projections have a bias
    assert calls["decode_layer"] == is_known * (NUM_TOKENS - 1) * num_layers(family)
    monkeypatch.setattr(backends, "ScriptedLayer", DecoderLayer)
    for fast, plain in zip(found, complete(folder, quantization=quantization), strict=True):
        assert fast.token_ids == plain.token_ids
        # What rounds differently in float32 may become another integer.
        bound = 0.02 if quantization else 2e-4
        assert fast.cumulative_logprob == pytest.approx(plain.cumulative_logprob, abs=bound)


@pytest.mark.parametrize("family", UNKNOWN)
def test_layers_that_the_function_does_not_know_are_computed_by_their_modules(
    tmp_path, calls, family
):
    complete(write_packable(tmp_path, family))
    assert not calls


def test_several_requests_and_other_attention_are_left_to_the_modules(tmp_path, calls):
    folder = write_packable(tmp_path, "llama")
    complete(folder, ["The rain", "in Spain"])
    complete(folder, attention_backend="reference")
    complete(folder, kv_cache_dtype="fp8")
    assert not calls


def test_attention_of_another_class_is_not_passed_over(tmp_path, calls, monkeypatch):
    def with_plain_attention(modules):
        return replace(with_fewer_calls(modules), attention=SelfAttention)

    monkeypatch.setattr(backends, "with_fewer_calls", with_plain_attention)
    complete(write_packable(tmp_path, "llama"))
    assert not calls


def test_a_context_of_several_rounds_is_left_to_the_modules(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(tiled, "SCRATCH_BYTES", {"cpu": 1})
    monkeypatch.setattr(tiled, "LEAST_ROUND", 32)
    (output,) = complete(write_packable(tmp_path, "llama"))
    assert len(output.token_ids) == NUM_TOKENS
    assert 0 < calls["decode_layer"] < (NUM_TOKENS - 1) * num_layers("llama")


def test_a_layer_compiles_and_computes_what_its_function_does(tmp_path):
    folder = write_packable(tmp_path, "qwen3")
    llm = LLM(str(folder), dtype="float32", device="cpu", num_gpu_blocks_override=64)
    layer = llm.built.model.decoder.layers[0]
    assert isinstance(layer, ScriptedLayer)
    heads, weights = layer._heads, layer._weights
    size = layer.self_attn.head_dim
    context = scripted_layer.Context(
        torch.linalg.qr(torch.randn(size, size))[0],
        torch.arange(heads.num_kv_heads) * 16 + 3,
        (torch.arange(heads.num_kv_heads)[:, None] * 16 + torch.arange(4)).view(-1),
    )
    x, residual = torch.randn(2, 1, FAMILIES["qwen3"]["hidden_size"])
    keys, values = torch.randn(2, heads.num_kv_heads * 16, size)
    fast, plain = (
        [
            *function(x, residual.clone(), keys := keys.clone(), values, context, heads, weights),
            keys,
        ]
        for function in (scripted_layer.scripted(decode_layer), decode_layer)
    )
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other)
