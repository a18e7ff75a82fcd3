"""The GPU's operations of a layer against the plain ones; without a GPU, in the interpreter."""

import pytest
import torch

pytest.importorskip("triton")

from minimal_vllm.attention.metadata import AttentionMetadata
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.kernels.gated_product import HOPPER, gated_product, is_for_gated_product
from minimal_vllm.model.layers import Linear, RMSNorm
from minimal_vllm.model.ops import PlainOps
from minimal_vllm.model.triton_ops import TritonOps

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-6
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
HALVES = pytest.mark.gpu  # the interpreter has no 16-bit arithmetic worth the name


def numbers(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def make_norm(size, dtype):
    norm = RMSNorm(size, EPS)
    norm.weight = torch.nn.Parameter(numbers(size, dtype=dtype), requires_grad=False)
    return norm


def make_linear(out_size, in_size, dtype, *, bias):
    linear = Linear(in_size, {"all": out_size}, bias=bias)
    weight = numbers(out_size, in_size, dtype=dtype) * in_size**-0.5
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    if bias:
        linear.bias = torch.nn.Parameter(numbers(out_size, dtype=dtype), requires_grad=False)
    return linear


def assert_close(got, expected, tolerance):
    error = (got.float() - expected.float()).norm() / expected.float().norm()
    assert error < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, *(pytest.param(d, marks=HALVES) for d in DTYPES)])
@pytest.mark.parametrize("num_tokens", [1, 4, 9])  # the first by our kernel
@pytest.mark.parametrize(("hidden", "out_size"), [(64, 96), (72, 50)])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_between_residual_and_attention(hidden, out_size, num_tokens, adds, bias, dtype):
    residual, x = (numbers(num_tokens, hidden, dtype=dtype) for _ in range(2))
    norm = make_norm(hidden, dtype)
    proj = make_linear(out_size, hidden, dtype, bias=bias)
    for name in ("add_norm_linear", "add_norm_gate"):
        expected, got = (
            getattr(ops, name)(residual.clone(), x if adds else None, norm, proj)
            for ops in (PlainOps(), TritonOps())
        )
        for one, other in zip(got, expected, strict=True):
            assert_close(one, other, DTYPES[dtype])
    plain = PlainOps().linear(x, proj.weight, proj.bias)
    assert_close(TritonOps().linear(x, proj.weight, proj.bias), plain, DTYPES[dtype])
    assert_close(
        TritonOps().add_norm(residual.clone(), x, norm)[1],
        PlainOps().add_norm(residual.clone(), x, norm)[1],
        DTYPES[dtype],
    )


@pytest.mark.parametrize("dtype", [torch.float32, *(pytest.param(d, marks=HALVES) for d in DTYPES)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("num_tokens", "hidden", "in_size", "parts"),
    [
        (1, 128, 1024, None),  # another kernel's
        (2, 1024, 1024, 8),
        (16, 2048, 512, 4),
        (70, 1024, 512, 4),
        (20, 960, 512, None),  # the library's, as 60 programs would be too few
        pytest.param(256, 1024, 2048, 2, marks=HALVES),
        (300, 1024, 512, None),  # the library's
        (7, 96, 512, None),
    ],
)
def test_a_product_in_parts_is_added_up_by_the_norm(
    num_tokens, hidden, in_size, parts, bias, dtype
):
    x = numbers(num_tokens, in_size, dtype=dtype)
    proj = make_linear(hidden, in_size, dtype, bias=bias)
    norm, residual = make_norm(hidden, dtype), numbers(num_tokens, hidden, dtype=dtype)
    to_add = TritonOps().linear_to_add(x, proj)
    assert to_add.shape == (*([parts] if parts else []), num_tokens, hidden)
    plain = PlainOps()
    expected = plain.add_norm(residual.clone(), plain.linear_to_add(x, proj), norm)
    got = TritonOps().add_norm(residual.clone(), to_add, norm)
    for one, other in zip(got, expected, strict=True):
        assert_close(one, other, DTYPES[dtype])


@pytest.mark.parametrize(
    ("dtype", "num_tokens", "in_size", "inner"),
    [
        (torch.float32, 3, 64, 128),
        (torch.float32, 130, 128, 256),
        pytest.param(torch.bfloat16, 4096, 1024, 3072, marks=HALVES),
        pytest.param(torch.float16, 5001, 192, 384, marks=HALVES),
    ],
)
def test_a_product_that_gates_at_its_end_equals_one_that_is_gated_behind(
    dtype, num_tokens, in_size, inner
):
    if DEVICE.type == "cuda" and (
        dtype == torch.float32 or torch.cuda.get_device_capability()[0] != HOPPER
    ):
        pytest.skip("it is for Hopper, and 16-bit numbers; float32 is for the interpreter")
    x = numbers(num_tokens, in_size, dtype=dtype)
    proj = make_linear(2 * inner, in_size, dtype, bias=False)
    if DEVICE.type == "cuda":
        assert is_for_gated_product(x, proj.weight, None)
    expected = torch.nn.functional.linear(x, proj.weight)
    gate, up = expected.chunk(2, dim=-1)
    expected = torch.nn.functional.silu(gate) * up
    assert_close(gated_product(x, proj.weight), expected, DTYPES[dtype])


def test_a_layer_of_which_no_token_is_wanted_has_nothing_to_add():
    residual, x = torch.empty(0, 64, device=DEVICE), torch.empty(0, 512, device=DEVICE)
    proj, norm = make_linear(64, 512, torch.float32, bias=False), make_norm(64, torch.float32)
    for each in TritonOps().add_norm(residual, TritonOps().linear_to_add(x, proj), norm):
        assert each.shape == (0, 64)


class Heads:
    """What the operations want to know of a layer."""

    def __init__(self, num_heads, num_kv_heads, head_dim, *, norms, rope, dtype):
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.rope = rope
        self.q_norm = make_norm(head_dim, dtype) if norms else None
        self.k_norm = make_norm(head_dim, dtype) if norms else None


@pytest.mark.parametrize("dtype", [torch.float32, *(pytest.param(d, marks=HALVES) for d in DTYPES)])
@pytest.mark.parametrize("shape", [(4, 2, 16), (9, 3, 24)])
@pytest.mark.parametrize(("norms", "rope"), [(True, True), (False, True), (True, False)])
def test_heads_are_normalised_turned_and_stored(shape, norms, rope, dtype):
    num_heads, num_kv_heads, head_dim = shape
    layer = Heads(*shape, norms=norms, rope=rope, dtype=dtype)
    qkv = numbers(5, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    table = numbers(50, head_dim)
    positions = torch.tensor([3, 0, 49, 7, 8], device=DEVICE)
    metadata = AttentionMetadata(torch.tensor([5, 31, 0, 16, 12], device=DEVICE))
    results = []
    for ops in (PlainOps(), TritonOps()):
        memory = torch.full((2, 3, num_kv_heads, 16, head_dim), -7.0, device=DEVICE).to(dtype)
        cache = LayerCache(*memory)
        rotation = ops.rotation(table, positions, dtype)
        heads = ops.norm_rotate_store(qkv.clone(), layer, rotation, cache, metadata)
        results.append((*heads, cache.key, cache.value))
    for expected, got in zip(*results, strict=True):
        assert_close(got, expected, DTYPES[dtype])


def test_a_token_without_a_slot_is_not_stored():
    layer = Heads(4, 2, 16, norms=False, rope=False, dtype=torch.float32)
    cache = LayerCache(*torch.full((2, 2, 2, 16, 16), -7.0, device=DEVICE))
    metadata = AttentionMetadata(torch.tensor([-1], device=DEVICE))
    ops = TritonOps()
    rotation = ops.rotation(numbers(4, 16), torch.tensor([0], device=DEVICE), torch.float32)
    ops.norm_rotate_store(numbers(1, 8 * 16), layer, rotation, cache, metadata)
    assert (cache.key == -7).all()
    assert (cache.value == -7).all()
