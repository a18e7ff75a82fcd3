"""The CPU's modules against the plain ones, whose numbers they compute in fewer operations."""

from types import SimpleNamespace

import pytest
import torch

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.attention.paged import write_to_cache
from minimal_vllm.attention.tiled import TiledAttention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.cpu_modules import CpuRMSNorm, TiledSelfAttention
from minimal_vllm.model.norm import RMSNorm
from minimal_vllm_lab.check.paged_case import make_case
from tests.checkpoints import FAMILIES, write_checkpoint


def make_norm(kind, size, eps, dtype):
    norm = kind("norm", size, eps)
    norm.weight.data = (1 + torch.randn(size)).to(dtype)
    return norm


@pytest.mark.parametrize("size", [64, 576])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_by_the_vectors_length_is_the_norm_by_the_mean_square(size, scale, dtype):
    torch.manual_seed(0)
    x = (scale * torch.randn(5, 3, size)).to(dtype)
    plain = make_norm(RMSNorm, size, 1e-5, dtype)
    fewer = CpuRMSNorm("norm", size, 1e-5)
    fewer.weight = plain.weight
    found = fewer.normalize(x[:, 1:])
    assert found.dtype is dtype
    torch.testing.assert_close(found, plain.normalize(x[:, 1:]), rtol=2e-6, atol=1e-6)


def test_a_norm_of_zeros_is_zero():
    norm = make_norm(CpuRMSNorm, 8, 1e-5, torch.float32)
    assert (norm.normalize(torch.zeros(2, 8)) == 0).all()


def of_another_attention(step):
    """A step as another attention describes it, such as the view's that looks at a token."""
    return SimpleNamespace(slots=step.slots)


@pytest.mark.parametrize("kind", [lambda step: step, of_another_attention], ids=["tiled", "other"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("block_size", [1, 5, 16])
def test_keys_and_values_are_stored_where_the_plain_write_stores_them(block_size, dtype, kind):
    case = make_case([(20, 1), (3, 9), (0, 6)], heads=(4, 2), block_size=block_size)
    step = TiledAttention(block_size, 2, case.k.shape[-1], torch.device("cpu")).plan(case.batch)
    plain, fewer = (LayerCache(*torch.zeros(2, *case.cache.key.shape).to(dtype)) for _ in range(2))
    k, v = (torch.randn(len(step.slots), 6, case.k.shape[-1])[:, :2] for _ in range(2))
    write_to_cache(k, v, plain, step.slots)
    attention = object.__new__(TiledSelfAttention)
    attention.head_dim = k.shape[-1]
    attention.store(k, v, kind(step), fewer)
    for expected, found in zip(plain, fewer, strict=True):
        assert torch.equal(found.float(), expected.float())
        assert expected.float().any()


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral-window", "olmo2", "gpt-oss"])
def test_a_model_has_the_log_probabilities_of_plain_modules_and_attention(tmp_path, family):
    write_checkpoint(tmp_path, FAMILIES[family])
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
    texts = ["The rain", "and then, 12", "x"]
    found, expected = (
        LLM(str(tmp_path), dtype="float32", attention_backend=name).generate(texts, params)
        for name in ("auto", "reference")
    )
    for fast, plain in zip(found, expected, strict=True):
        assert fast.outputs[0].token_ids == plain.outputs[0].token_ids
        assert fast.outputs[0].cumulative_logprob == pytest.approx(
            plain.outputs[0].cumulative_logprob, abs=1e-4
        )
