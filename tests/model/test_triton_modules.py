"""The GPU's modules against the plain ones; without a GPU, in Triton's interpreter."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import linear, rms_norm

pytest.importorskip("triton")

from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.device.properties import is_hopper
from minimal_vllm.model.activation import ACTIVATIONS
from minimal_vllm.model.deferred import computed
from minimal_vllm.model.kernels import heads
from minimal_vllm.model.kernels.few_rows import (
    Tile,
    can_use_few_rows,
    choose_tile,
    few_rows_product,
)
from minimal_vllm.model.kernels.gated_product import can_use_gated_product, gated_product
from minimal_vllm.model.layer_config import LayerConfig
from minimal_vllm.model.layers import PLAIN_MODULES
from minimal_vllm.model.linear import TypedParameter
from minimal_vllm.model.rope import Rotary
from minimal_vllm.model.rope_config import RopeConfig
from minimal_vllm.model.triton_modules import TRITON_MODULES, DividedStream, PartialSums, PartOfSum

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-6
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
HALF = [dtype for dtype in DTYPES if dtype.itemsize == 2]
HALVES = pytest.mark.gpu  # the interpreter has no 16-bit arithmetic worth the name


def numbers(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def make(kind, *arguments, dtype):
    """The plain and the Triton module of a kind, with the same weights."""
    pair = []
    for modules in (PLAIN_MODULES, TRITON_MODULES):
        module = getattr(modules, kind)(*arguments)
        for name, shape in [(name, each.shape) for name, each in module.named_parameters()]:
            exact = isinstance(getattr(module, name), TypedParameter)
            weight = numbers(*shape, dtype=getattr(module, name).dtype if exact else dtype)
            if len(shape) == 2:
                weight *= shape[1] ** -0.5
            setattr(module, name, torch.nn.Parameter(weight, requires_grad=False))
        pair.append(module)
    return pair


def assert_close(got, expected, tolerance):
    error = (got.float() - expected.float()).norm() / expected.float().norm()
    assert error < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, *(pytest.param(d, marks=HALVES) for d in DTYPES)])
@pytest.mark.parametrize("num_tokens", [1, 4, 9])  # the first by our kernel
@pytest.mark.parametrize(("hidden", "out_size"), [(64, 96), (72, 50)])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_norm_and_the_projections_behind_it_give_what_the_plain_ones_give(
    hidden, out_size, num_tokens, adds, bias, dtype, activation
):
    stream, x = (numbers(num_tokens, hidden, dtype=dtype) for _ in range(2))
    norms = make("norm", "norm", hidden, EPS, dtype=dtype)
    for kind, arguments in {
        "linear": (hidden, {"all": out_size}, bias),
        "gated_linear": (hidden, out_size, bias, activation),
    }.items():
        results = []
        for norm, projection in zip(norms, make(kind, *arguments, dtype=dtype), strict=True):
            begin = (x, stream.clone()) if adds else (stream.clone(), None)
            normed, residual = norm.forward(*begin)
            results.append((projection.forward(normed), residual))
        for expected, got in zip(*results, strict=True):
            assert_close(got, expected, DTYPES[dtype])
    plain, ours = make("linear", hidden, {"all": out_size}, bias, dtype=dtype)
    out = torch.empty(num_tokens, out_size, dtype=dtype, device=DEVICE)
    assert ours.forward(x, out).data_ptr() == out.data_ptr()
    assert_close(out, plain.forward(x), DTYPES[dtype])


@pytest.mark.parametrize("num_tokens", [1, 4])
@pytest.mark.parametrize("adds", [True, False])
def test_a_norm_that_no_projection_takes_is_computed_when_it_is_asked_for(num_tokens, adds):
    stream, x = (numbers(num_tokens, 64) for _ in range(2))
    results = []
    for norm in make("norm", "norm", 64, EPS, dtype=torch.float32):
        begin = (x, stream.clone()) if adds else (stream.clone(), None)
        normed, residual = norm.forward(*begin)
        results.append((computed(normed), residual))
    for expected, got in zip(*results, strict=True):
        assert_close(got, expected, 1e-5)


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
    stream = numbers(num_tokens, hidden, dtype=dtype)
    plain, ours = make("row_linear", in_size, {"all": hidden}, bias, dtype=dtype)
    plain_norm, our_norm = make("norm", "norm", hidden, EPS, dtype=dtype)
    to_add = ours.forward(x)
    assert isinstance(to_add, PartialSums) is (parts is not None)
    if parts:
        assert to_add.parts.shape == (parts, num_tokens, hidden)
    assert_close(computed(to_add), plain.forward(x), DTYPES[dtype])
    expected = plain_norm.forward(plain.forward(x), stream.clone())
    got = our_norm.forward(to_add, stream.clone())
    for one, other in zip(got, expected, strict=True):
        assert_close(computed(one), other, DTYPES[dtype])


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
    if DEVICE.type == "cuda" and (dtype == torch.float32 or not is_hopper(DEVICE)):
        pytest.skip("it is for Hopper, and 16-bit numbers; float32 is for the interpreter")
    x = numbers(num_tokens, in_size, dtype=dtype)
    plain, _ = make("gated_linear", in_size, inner, False, "silu", dtype=dtype)
    if DEVICE.type == "cuda":
        assert can_use_gated_product(x, plain.weight, None)
    assert_close(gated_product(x, plain.weight, "silu"), plain.forward(x), DTYPES[dtype])


class TwoEqualRanks:
    """Ranks whose parts are equal, and which divide the tokens between them; see ``RankSums``."""

    def add_now(self, parts, dtype):
        return 2 * parts.sum(dim=0).to(dtype)

    def add_norm(self, part, residual, weight, eps):
        whole = residual.stream if isinstance(residual, DividedStream) else residual
        total = whole + self.add_now(part.parts, part.dtype)
        normed = rms_norm(total, weight.shape, weight, eps)
        return normed, DividedStream(total, lambda stream: stream.clone())


def test_parts_of_ranks_are_added_up_by_the_norm_or_where_nothing_else_does():
    stream, first, second = numbers(3, 5, 64)
    plain, ours = make("norm", "norm", 64, EPS, dtype=torch.float32)
    residual, expected = stream.clone(), stream.clone()
    for x in (first, second):
        normed, residual = ours.forward(PartOfSum(x[None], x.dtype, TwoEqualRanks()), residual)
        normed_of_plain, expected = plain.forward(2 * x, expected)
        assert_close(normed, normed_of_plain, 1e-5)
    assert_close(computed(residual), expected, 1e-5)
    _, residual = ours.forward(first, residual)  # a sum that was not deferred
    _, expected = plain.forward(first, expected)
    assert_close(residual, expected, 1e-5)
    part = PartOfSum(torch.stack([first, second]), first.dtype, TwoEqualRanks())
    assert_close(computed(part), 2 * (first + second), 1e-5)


def test_a_layer_of_which_no_token_is_wanted_has_nothing_to_add():
    residual, x = torch.empty(0, 64, device=DEVICE), torch.empty(0, 512, device=DEVICE)
    _, proj = make("row_linear", 512, {"all": 64}, False, dtype=torch.float32)
    _, norm = make("norm", "norm", 64, EPS, dtype=torch.float32)
    for each in norm.forward(proj.forward(x), residual):
        assert computed(each).shape == (0, 64)


@pytest.mark.parametrize("dtype", [torch.float32, *(pytest.param(d, marks=HALVES) for d in DTYPES)])
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_an_exact_norm_gives_what_the_plain_one_gives(num_tokens, dtype):
    stream, x = (numbers(num_tokens, 64, dtype=dtype) for _ in range(2))
    plain, ours = make("norm", "norm", 64, EPS, True, dtype=dtype)
    assert plain.weight.dtype == ours.weight.dtype == torch.float32
    for got in (ours.normalize(x), computed(ours.forward(x)[0])):
        assert got.dtype == dtype
        assert_close(got, plain.normalize(x), DTYPES[dtype])
    expected = plain.forward(x, stream.clone())[0]
    assert_close(computed(ours.forward(x, stream.clone())[0]), expected, DTYPES[dtype])
    projections = make("linear", 64, {"all": 32}, False, dtype=dtype)
    expected, got = (
        projection.forward(norm.forward(x, stream.clone())[0])
        for norm, projection in zip((plain, ours), projections, strict=True)
    )
    assert_close(got, expected, DTYPES[dtype])


def make_attentions(num_heads, num_kv_heads, head_dim, *, norms, dtype, exact=False):
    """The plain and the Triton attention of a layer, with the same norms."""
    config = SimpleNamespace(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        hidden_size=8,
        qkv_bias=False,
        o_bias=False,
        fused=frozenset(),
        qk_norm=norms,
        exact_norms=exact,
        rms_norm_eps=EPS,
        attention_scale=1.0,
        attention_softcap=None,
        attention_sinks=False,
    )
    layer = LayerConfig(window=None, rope=True)
    pair = [
        modules.attention(config, layer, modules) for modules in (PLAIN_MODULES, TRITON_MODULES)
    ]
    if norms:
        for name in ("q_norm", "k_norm"):
            size = len(getattr(pair[0], name).weight)
            weight = numbers(size, dtype=torch.float32 if exact else dtype)
            weight = torch.nn.Parameter(weight, requires_grad=False)
            for attention in pair:
                getattr(attention, name).weight = weight
    return pair


@pytest.mark.parametrize("dtype", [torch.float32, *(pytest.param(d, marks=HALVES) for d in DTYPES)])
@pytest.mark.parametrize("shape", [(4, 2, 16), (9, 3, 24)])
@pytest.mark.parametrize(
    ("norms", "exact", "rope"),
    [
        ("per head", False, RopeConfig(1e4)),
        (None, False, RopeConfig(1e4)),
        ("per head", False, None),
        ("per head", True, RopeConfig(1e4, share=0.5)),
        ("all heads", True, RopeConfig(1e4, share=0.5, pairs="neighbors")),
        (None, False, RopeConfig(1e4, pairs="neighbors")),
        (None, False, RopeConfig(1e4, share=0.75)),
        (None, False, RopeConfig(1e4, share=0.25)),
    ],
)
def test_heads_are_normalized_rotated_and_stored(shape, norms, exact, rope, dtype):
    num_heads, num_kv_heads, head_dim = shape
    pair = make_attentions(*shape, norms=norms, exact=exact, dtype=dtype)
    qkv = numbers(5, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    positions = torch.tensor([3, 0, 49, 7, 8], device=DEVICE)
    slots = torch.tensor([5, 31, 0, 16, 12], device=DEVICE)
    results = []
    rotation = rope and Rotary(rope, head_dim, 50, DEVICE).rotation(positions, dtype)
    for attention in pair:
        memory = torch.full((2, 3, num_kv_heads, 16, head_dim), -7.0, device=DEVICE).to(dtype)
        cache = LayerCache(*memory)
        heads = attention.rotate_and_store(
            qkv.clone(), rotation, SimpleNamespace(slots=slots), cache
        )
        results.append((*heads, cache.key, cache.value))
    for expected, got in zip(*results, strict=True):
        assert_close(got, expected, DTYPES[dtype])


@pytest.mark.parametrize("shape", [(4, 2, 16), (20, 3, 24)])
def test_heads_of_many_tokens_are_prepared_like_those_of_few(shape, monkeypatch):
    num_heads, num_kv_heads, head_dim = shape
    qkv = numbers(5, (num_heads + 2 * num_kv_heads) * head_dim)
    norms = numbers(head_dim), numbers(head_dim)
    positions = torch.tensor([3, 0, 49, 7, 8], device=DEVICE)
    rotation = Rotary(RopeConfig(1e4), head_dim, 50, DEVICE).rotation(positions, qkv.dtype)
    results = []
    for few_tokens in (4, 5):
        monkeypatch.setattr(heads, "FEW_TOKENS", few_tokens)
        prepared = qkv.clone()
        cache = LayerCache(*torch.zeros(2, 4, num_kv_heads, 16, head_dim, device=DEVICE))
        heads.norm_rotate_store(prepared, norms, 1e-6, rotation, positions, cache)
        results.append((prepared, *cache))
    for many, few in zip(*results, strict=True):
        assert_close(many, few, DTYPES[torch.float32])


def test_a_token_without_a_slot_is_not_stored():
    _, attention = make_attentions(4, 2, 16, norms=None, dtype=torch.float32)
    cache = LayerCache(*torch.full((2, 2, 2, 16, 16), -7.0, device=DEVICE))
    slots = torch.tensor([-1], device=DEVICE)
    attention.rotate_and_store(numbers(1, 8 * 16), None, SimpleNamespace(slots=slots), cache)
    assert (cache.key == -7).all()
    assert (cache.value == -7).all()


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float8_e4m3fn, marks=HALVES)])
def test_nan_is_not_hidden_by_the_cache(dtype):
    qkv = numbers(3, 4 * 16)
    qkv[1, 2 * 16 :] = torch.nan
    slots = torch.tensor([5, 7, 31], device=DEVICE)
    stored = []
    for attention in make_attentions(2, 1, 16, norms=None, dtype=torch.float32):
        cache = LayerCache(*torch.zeros(2, 3, 1, 16, 16, device=DEVICE).to(dtype))
        attention.rotate_and_store(qkv.clone(), None, SimpleNamespace(slots=slots), cache)
        stored.append([memory.float().isnan() for memory in cache])
    for expected, got in zip(*stored, strict=True):
        assert expected.sum() == 16
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, *(pytest.param(d, marks=HALVES) for d in HALF)])
@pytest.mark.parametrize("num_tokens", [2, 5, 8])
@pytest.mark.parametrize(("in_size", "out_size"), [(512, 96), (1024, 50)])
@pytest.mark.parametrize("bias", [True, False])
def test_few_tokens_times_weights_give_what_the_library_gives(
    in_size, out_size, num_tokens, bias, dtype
):
    x = numbers(num_tokens, in_size, dtype=dtype)
    weight = numbers(out_size, in_size, dtype=dtype) * in_size**-0.5
    offset = numbers(out_size, dtype=dtype) if bias else None
    assert not can_use_few_rows(x, weight), "the library is as fast"
    expected = linear(x, weight, offset)
    stages = 3 if dtype == torch.float32 else 6  # more would not fit into an SM's memory
    out = torch.full_like(expected, 7)
    assert few_rows_product(x, weight, offset, Tile(16, stages), out) is out
    assert_close(out, expected, DTYPES[dtype])
    parts = few_rows_product(x, weight, offset, Tile(32, 3, parts=2, starts_early=True))
    assert parts.shape == (2, num_tokens, out_size)
    assert_close(parts.sum(0), expected, DTYPES[dtype])
    for activation in ACTIVATIONS:
        gate, up = expected.chunk(2, dim=1)
        for tile in (Tile(32, 3), Tile(32, 4, starts_early=True, depth=128)):
            got = few_rows_product(x, weight, offset, tile, activation=activation)
            assert_close(got, ACTIVATIONS[activation](gate) * up, DTYPES[dtype])


@pytest.mark.parametrize("shape", [(6144, 4096), (4096, 4096), (24576, 4096), (151_936, 1024)])
def test_each_part_of_a_sum_is_a_number_of_iterations(shape):
    weight = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    usable = [
        can_use_few_rows(torch.empty(tokens, shape[1], dtype=dtype, device="meta"), weight)
        for tokens, dtype in (
            (1, weight.dtype),
            (2, weight.dtype),
            (8, weight.dtype),
            (9, weight.dtype),
            (8, torch.float32),
        )
    ]
    assert usable == [False, True, True, False, False]
    for gated in (True, False):
        tile = choose_tile(weight, gated=gated, may_split=not gated)
        assert shape[1] % (tile.parts * tile.depth) == 0
