"""Mixtures of experts: the plain one against a loop over tokens, and the kernels against it."""

import pytest
import torch

pytest.importorskip("triton")

from checkpoints import FAMILIES, QUANTIZED, random_weights, write_checkpoint, write_weights

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.deferred import computed
from minimal_vllm.model.experts import choose_experts
from minimal_vllm.model.kernels.choose import add_norm_and_choose
from minimal_vllm.model.kernels.mxfp4 import weighted_fragment_product
from minimal_vllm.model.kernels.route import route_and_list
from minimal_vllm.model.layers import PLAIN_MODULES, MoE
from minimal_vllm.model.quantization.convert import Layouts, quantized
from minimal_vllm.model.quantization.mxfp4 import Mxfp4Matrices
from minimal_vllm.model.quantization.mxfp4_fragments import FragmentMatrices
from minimal_vllm.model.triton_modules import TRITON_MODULES
from minimal_vllm.model.triton_weights import TRITON_LAYOUTS

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GPU = pytest.mark.gpu
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
ALL_DTYPES = [torch.float32, *(pytest.param(dtype, marks=GPU) for dtype in DTYPES)]


def numbers(*shape, dtype=torch.float32):
    generator = torch.Generator(DEVICE).manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device=DEVICE).to(dtype)


def gpt_oss_with(hidden=64, count=6, per_token=3, inner=32, name="gpt-oss"):
    sizes = {"hidden_size": hidden, "intermediate_size": inner}
    experts = {"num_local_experts": count, "num_experts_per_tok": per_token}
    return ModelConfig.from_dict({**FAMILIES, **QUANTIZED}[name] | sizes | experts)


def config_with(hidden=32, count=6, per_token=3, inner=20, normalized=True):
    config = dict(FAMILIES["qwen3-moe"])
    return ModelConfig.from_dict(
        config
        | {
            "hidden_size": hidden,
            "num_experts": count,
            "num_experts_per_tok": per_token,
            "moe_intermediate_size": inner,
            "norm_topk_prob": normalized,
        }
    )


def make_pair(config, dtype=torch.float32):
    """The plain and the Triton mixture of experts, with the same weights."""
    pair = []
    for modules, layouts in ((PLAIN_MODULES, Layouts()), (TRITON_MODULES, TRITON_LAYOUTS)):
        module = MoE(config, quantized(modules, config.quantization, layouts))
        for part in module.modules():
            for name, old in list(part.named_parameters(recurse=False)):
                weight = random_like(old, name, dtype)
                setattr(part, name, torch.nn.Parameter(weight, requires_grad=False))
        module.experts.after_loading()
        pair.append(module)
    return pair


def random_like(parameter, name, dtype):
    if parameter.dtype != torch.uint8:
        return numbers(*parameter.shape, dtype=dtype) * parameter.shape[-1] ** -0.5
    least, most = (0, 256) if name == "packed" else (121, 125)
    generator = torch.Generator(DEVICE).manual_seed(parameter.numel())
    return torch.randint(
        least, most, parameter.shape, generator=generator, device=DEVICE, dtype=torch.uint8
    )


def assert_close(got, expected, tolerance):
    error = (got.float() - expected.float()).norm() / expected.float().norm()
    assert error < tolerance


@pytest.mark.parametrize("normalized", [True, False])
def test_a_token_is_the_weighted_sum_of_its_experts(normalized):
    config = config_with(normalized=normalized)
    plain, _ = make_pair(config)
    x = numbers(9, 32)
    logits = x @ plain.router.weight.T
    for token, got in enumerate(computed(plain.forward(x))):
        probabilities = logits[token].softmax(0)
        best = sorted(range(6), key=lambda expert: -probabilities[expert])[:3]
        total = sum(probabilities[expert] for expert in best) if normalized else 1
        expected = torch.zeros(32, device=DEVICE)
        for expert in best:
            gate, up = (plain.experts.gate_up[expert] @ x[token]).chunk(2)
            result = plain.experts.down[expert] @ (torch.nn.functional.silu(gate) * up)
            expected += probabilities[expert] / total * result
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("num_tokens", [0, 1, 3, 9, 70])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"count": 5, "per_token": 1, "inner": 72, "hidden": 72},
        {"count": 8, "per_token": 8, "inner": 36, "normalized": False},
    ],
)
def test_the_kernels_compute_what_the_plain_experts_compute(sizes, num_tokens, dtype):
    config = config_with(**sizes)
    plain, ours = make_pair(config, dtype)
    x = numbers(num_tokens, config.hidden_size, dtype=dtype)
    expected = computed(plain.forward(x))
    got = computed(ours.forward(x))
    assert got.shape == expected.shape
    if num_tokens:
        assert_close(got, expected, DTYPES[dtype])


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("name", ["gpt-oss", "gpt-oss-mxfp4"])
@pytest.mark.parametrize(
    ("sizes", "num_tokens"),
    [
        ({}, 5),
        ({}, 9),
        ({}, 60),
        ({"count": 5, "per_token": 1, "inner": 96, "hidden": 160}, 1),
        ({"count": 5, "per_token": 1, "inner": 96, "hidden": 160}, 20),
    ],
)
def test_the_kernels_add_biases_clamp_the_gate_and_unpack(sizes, name, num_tokens, dtype):
    config = gpt_oss_with(**sizes, name=name)
    plain, ours = make_pair(config, dtype)
    x = 3 * numbers(num_tokens, config.hidden_size, dtype=dtype)
    assert_close(computed(ours.forward(x)), computed(plain.forward(x)), DTYPES[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=GPU)])
@pytest.mark.parametrize("sizes", [(48, 128), (40, 160), (2, 32)])
def test_products_with_unit_vectors_are_the_columns(sizes, dtype):
    plain, ours = Mxfp4Matrices(3, *sizes), FragmentMatrices(3, *sizes, interleaved=False)
    generator = torch.Generator(DEVICE).manual_seed(0)
    for name, least, most in (("packed", 0, 256), ("scale", 100, 150)):
        shape = getattr(plain, name).shape
        numbers = torch.randint(least, most, shape, generator=generator, device=DEVICE)
        for each in (plain, ours):
            part = torch.nn.Parameter(numbers.to(torch.uint8), requires_grad=False)
            setattr(each, name, part)
    ours.reorder()
    units = torch.eye(sizes[1], device=DEVICE, dtype=dtype)[:, None]
    ones = torch.ones(len(units), 1, device=DEVICE)
    for expert in range(3):
        logits = torch.zeros(len(units), 3, device=DEVICE)
        logits[:, expert] = 1
        _, _, lists = route_and_list(logits, 1, normalized=True)
        got = weighted_fragment_product(units, ones, lists, ours.fragments(None))
        assert torch.equal(got[0].T, plain.dequantized(expert, dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["gpt-oss", "gpt-oss-mxfp4"])
@pytest.mark.parametrize("num_tokens", [1, 4, 8, 64, 300, 900, 5000])
def test_the_kernels_are_right_in_the_shape_of_gpt_oss(num_tokens, name):
    config = gpt_oss_with(hidden=2880, count=32, per_token=4, inner=2880, name=name)
    plain, ours = make_pair(config, torch.bfloat16)
    x = numbers(num_tokens, 2880, dtype=torch.bfloat16)
    assert_close(computed(ours.forward(x)), computed(plain.forward(x)), 2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 8, 9, 64, 200, 256, 500, 900, 5000])
def test_the_kernels_are_right_in_the_shape_of_a_large_model(num_tokens):
    config = config_with(hidden=2048, count=128, per_token=8, inner=768)
    plain, ours = make_pair(config, torch.bfloat16)
    x = numbers(num_tokens, 2048, dtype=torch.bfloat16)
    assert_close(computed(ours.forward(x)), computed(plain.forward(x)), 2e-2)


@pytest.mark.parametrize("num_tokens", [1, 9])
@pytest.mark.parametrize("config", [config_with(), gpt_oss_with(name="gpt-oss-mxfp4")])
def test_a_norm_before_the_experts_is_applied_by_the_kernels(config, num_tokens):
    plain, ours = make_pair(config)
    size = config.hidden_size
    weight = numbers(size)
    results = []
    for moe, modules in ((plain, PLAIN_MODULES), (ours, TRITON_MODULES)):
        norm = modules.norm("norm", size, 1e-6)
        norm.weight = torch.nn.Parameter(weight, requires_grad=False)
        normed, residual = norm.forward(numbers(num_tokens, size), 2 * numbers(num_tokens, size))
        results.append((computed(moe.forward(normed)), residual))
    for expected, got in zip(*results, strict=True):
        assert_close(got, expected, 1e-5)


def test_all_tokens_may_choose_the_same_experts():
    plain, ours = make_pair(config_with())
    x = numbers(1, 32).expand(40, 32).contiguous()
    assert_close(computed(ours.forward(x)), computed(plain.forward(x)), 1e-5)


@pytest.mark.parametrize("count", [5, 128])
@pytest.mark.parametrize("normalized", [True, False])
def test_the_kernel_chooses_the_experts_that_the_plain_router_chooses(count, normalized):
    logits = 3 * numbers(50, count)
    expected_experts, expected_weights = choose_experts(logits, 4, normalized)
    experts, weights, lists = route_and_list(logits, 4, normalized=normalized)
    assert torch.equal(experts.long(), expected_experts)
    torch.testing.assert_close(weights, expected_weights)
    for expert in range(count):
        members = lists.members[expert, : lists.counts[expert]].tolist()
        chosen = (expected_experts.flatten() == expert).nonzero().flatten().tolist()
        assert sorted(members) == chosen


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize(
    ("count", "hidden", "normalized"), [(5, 40, True), (32, 2880, True), (128, 2048, False)]
)
def test_one_kernel_adds_normalizes_and_chooses_like_three(count, hidden, normalized, added):
    residual, x = numbers(1, hidden), 2 * numbers(1, hidden) if added else None
    weight, router, bias = numbers(hidden), numbers(count, hidden) / 30, numbers(count)
    counter = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    expected = residual if x is None else residual + x
    norm = torch.nn.functional.rms_norm(expected, (hidden,), weight, 1e-6)
    chosen = choose_experts(norm @ router.T + bias, 4, normalized)
    for _ in range(2):  # the counter is ready again after the first time
        total = residual if x is None else torch.empty_like(residual)
        normed, experts, weights = add_norm_and_choose(
            residual, x, total, (weight, 1e-6), (router, bias), 4, counter, normalized=normalized
        )
        assert torch.equal(total, expected)
        torch.testing.assert_close(normed, norm)
        assert torch.equal(experts.long(), chosen[0])
        torch.testing.assert_close(weights, chosen[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_numbers_choose_experts_that_exist(bad):
    logits = numbers(6, 5)
    logits[1, 2] = bad
    logits[2] = bad
    experts, weights, _ = route_and_list(logits, 3, normalized=True)
    for row in experts.tolist():
        assert len(set(row)) == 3
        assert all(0 <= expert < 5 for expert in row)
    assert weights[[0, 3, 4, 5]].isfinite().all()
    assert weights[2].isnan().all()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_a_router_whose_logits_are_not_numbers_ends_its_request_and_no_other(device, tmp_path):
    prompts = [[1, 2, 3] * 6, [7] + [5, 6, 8] * 6]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    config = FAMILIES["qwen3-moe"]
    results = {}
    for broken in (False, True):
        weights = random_weights(config)
        if broken:
            weights["model.embed_tokens.weight"][7] = float("nan")
        folder = write_checkpoint(tmp_path / str(broken), config)
        write_weights(folder, weights)
        llm = LLM(str(folder), device=device, dtype="float32", skip_tokenizer_init=True,
                  num_gpu_blocks_override=8, max_model_len=64)  # fmt: skip
        results[broken] = [
            output.outputs[0] for output in llm.generate(prompts, params, use_tqdm=False)
        ]
    assert [each.finish_reason for each in results[True]] == ["length", "error"]
    assert results[True][0].token_ids == results[False][0].token_ids


def test_missing_experts_are_listed_in_one_line(tmp_path):
    config = FAMILIES["mixtral"]
    weights = random_weights(config)
    missing = [name for name in weights if ".layers.1." in name and ".experts." in name]
    folder = write_checkpoint(tmp_path, config)
    write_weights(folder, {name: each for name, each in weights.items() if name not in missing})
    with pytest.raises(ValueError, match=r"missing: .*experts\.0\.w1.* and 7 more") as raised:
        LLM(str(folder), skip_tokenizer_init=True)
    assert "\n" not in str(raised.value)
