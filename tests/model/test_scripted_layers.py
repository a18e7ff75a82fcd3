"""All layers in one function against layers of separate modules."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.attention import tiled
from minimal_vllm.attention.tiled_step import ContextGroup, TokenContexts
from minimal_vllm.engine import backends
from minimal_vllm.model import scripted_layers
from minimal_vllm.model.cpu_modules import with_fewer_calls
from minimal_vllm.model.layer_stack import Layers
from minimal_vllm.model.layers import SelfAttention
from minimal_vllm.model.packed_linear import can_pack
from minimal_vllm.model.quantization.convert import Layouts
from minimal_vllm.model.quantization.int8_amx import AmxInt8Weight, _sums_are_exact
from minimal_vllm.model.scripted_layers import Known, Layer, ScriptedLayers, heads_of, weights_of
from tests.checkpoints import FAMILIES, random_weights, write_checkpoint, write_weights

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="FBGEMM needs AVX2")
KNOWN = ["llama", "qwen2", "qwen3", "mistral-window", "llama-mha-tied"]
UNKNOWN = ["olmo2", "gpt-oss", "gemma2"]
NUM_TOKENS = 40
TEXTS = ["The rain in Spain", "stays", "mainly in the plain"]


@pytest.fixture
def calls(monkeypatch):
    """Numbers of tokens that the function was called with."""
    counter = []

    def counted(module):
        def forward(x, *args):
            counter.append(len(x))
            return module.forward(x, *args)

        return SimpleNamespace(forward=forward)

    monkeypatch.setattr(scripted_layers, "scripted_module", counted)
    return counter


def complete(folder, texts=TEXTS[:1], **options):
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0)
    llm = LLM(str(folder), dtype="float32", device="cpu", num_gpu_blocks_override=64, **options)
    return [output.outputs[0] for output in llm.generate(list(texts), params)]


def write_packable(folder, family):
    """Write a checkpoint whose weights half precision holds exactly."""
    write_checkpoint(folder, FAMILIES[family])
    weights = random_weights(FAMILIES[family])
    write_weights(folder, {name: weight.half().float() for name, weight in weights.items()})
    return folder


def bytes_of_keys(family, count):
    """Return the bytes that a layer's keys of ``count`` tokens take."""
    shape = FAMILIES[family]
    head_dim = shape["hidden_size"] // shape["num_attention_heads"]
    return count * shape["num_key_value_heads"] * head_dim * torch.float32.itemsize


@pytest.mark.parametrize("family", KNOWN)
@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS], ids=["one request", "three requests"])
def test_requests_get_the_tokens_of_separate_modules(
    tmp_path, monkeypatch, calls, family, quantization, texts
):
    folder = write_packable(tmp_path, family)
    found = complete(folder, texts, quantization=quantization)
    is_known = not (family == "qwen2" and quantization)  # whose 8-bit projections have a bias
    assert len(calls) == is_known * NUM_TOKENS
    monkeypatch.setattr(backends, "ScriptedLayers", Layers)
    for fast, plain in zip(found, complete(folder, texts, quantization=quantization), strict=True):
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


def test_other_attention_is_left_to_the_modules(tmp_path, calls):
    folder = write_packable(tmp_path, "llama")
    complete(folder, attention_backend="reference")
    complete(folder, kv_cache_dtype="fp8")
    assert not calls


def test_more_tokens_are_left_to_the_modules(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(scripted_layers, "FEW_TOKENS", len(TEXTS) - 1)
    complete(write_packable(tmp_path, "llama"), TEXTS)
    assert not calls


def test_attention_of_another_class_is_not_passed_over(tmp_path, calls, monkeypatch):
    def with_plain_attention(modules):
        return replace(with_fewer_calls(modules), attention=SelfAttention)

    monkeypatch.setattr(backends, "with_fewer_calls", with_plain_attention)
    complete(write_packable(tmp_path, "llama"))
    assert not calls


def test_contexts_of_many_keys_are_left_to_the_modules(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(tiled, "CONTEXT_BYTES", bytes_of_keys("llama", 32))
    (output,) = complete(write_packable(tmp_path, "llama"))
    assert len(output.token_ids) == NUM_TOKENS
    assert 0 < len(calls) < NUM_TOKENS


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_contexts_of_different_length_get_the_tokens_of_separate_modules(
    tmp_path, monkeypatch, calls, family
):
    monkeypatch.setattr(tiled, "MAX_PADDING_BYTES", bytes_of_keys(family, 8))
    texts = ["stays", "The rain in Spain " * 8, "mainly", "in the plain " * 4]
    folder = write_packable(tmp_path, family)
    found = complete(folder, texts)
    assert calls
    monkeypatch.setattr(backends, "ScriptedLayers", Layers)
    for fast, plain in zip(found, complete(folder, texts), strict=True):
        assert fast.token_ids == plain.token_ids
        assert fast.cumulative_logprob == pytest.approx(plain.cumulative_logprob, abs=2e-4)


@pytest.mark.parametrize("group_sizes", [[1], [3], [1, 2, 1]])
def test_the_function_compiles_and_computes_what_it_does_in_python(tmp_path, group_sizes):
    folder = write_packable(tmp_path, "qwen3")
    llm = LLM(str(folder), dtype="float32", device="cpu", num_gpu_blocks_override=64)
    layers = llm.built.model.decoder.layers
    assert isinstance(layers, ScriptedLayers)
    known = [Layer(heads_of(layer), weights_of(layer)) for layer in layers]
    num_tokens = sum(group_sizes)
    num_kv_heads, size = known[0].heads.num_kv_heads, layers[0].self_attn.head_dim
    heads = torch.arange(num_tokens * num_kv_heads)  # of which each has a block of its own
    groups = [
        ContextGroup(
            len(own) // num_kv_heads,
            (own[:, None] * 16 + torch.arange(4)).view(-1),
            torch.empty(2, len(own) * 4, size),
            None if len(own) == num_kv_heads else torch.randn(len(own) // num_kv_heads, 1, 1, 4),
        )
        for own in heads.split([num_kv_heads * each for each in group_sizes])
    ]
    context = scripted_layers.Context(
        torch.linalg.qr(torch.randn(num_tokens, size, size))[0],
        TokenContexts(torch.randperm(num_tokens), heads * 16 + 3, groups),
    )
    x = torch.randn(num_tokens, FAMILIES["qwen3"]["hidden_size"])
    caches = torch.randn(2, len(known), num_tokens, num_kv_heads, 16, size)
    results = []
    for module in (layers._compiled, Known(known)):
        keys, values = ([*memory] for memory in caches.clone())
        stream = module.forward(x, [context], [0] * len(known), keys, values)
        results.append([stream, *keys, *values])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.skipif(not _sums_are_exact(), reason="oneDNN's product overflows on this CPU")
def test_requests_get_the_same_tokens_from_amxs_tiles(tmp_path, calls, monkeypatch):
    folder = write_packable(tmp_path, "llama")
    plain = complete(folder, TEXTS, quantization="int8")
    monkeypatch.setattr(backends, "CPU_LAYOUTS", Layouts(int8=AmxInt8Weight))
    found = complete(folder, TEXTS, quantization="int8")
    assert len(calls) == 2 * NUM_TOKENS
    for one, other in zip(found, plain, strict=True):
        assert one.token_ids == other.token_ids
        assert one.cumulative_logprob == other.cumulative_logprob
