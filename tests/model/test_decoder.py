from dataclasses import astuple, replace

import pytest
import torch
from checkpoints import FAMILIES, write_checkpoint
from dense_attention import TOKEN_IDS, compute_logits, dense_cache  # noqa: F401
from transformers import AutoModelForCausalLM

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.deferred import computed
from minimal_vllm.model.layers import Modules
from minimal_vllm.model.linear import Linear, parameter
from minimal_vllm.model.loader import checkpoint_tensors, load_model
from minimal_vllm.model.norm import RMSNorm
from minimal_vllm.model.registry import NormNames

STEADY_QUERIES = FAMILIES["ministral3"]["rope_parameters"] | {"llama_4_scaling_beta": 1e-9}
TRUNCATED = FAMILIES["gpt-oss"]["rope_scaling"] | {"truncate": True}


def load(folder, dtype=torch.float32, **options) -> Decoder:
    config = ModelConfig.from_checkpoint(folder)
    return load_model(folder, config, dtype, torch.device("cpu"), **options)


@torch.no_grad()
def transformers_logits(folder, dtype=torch.float32) -> torch.Tensor:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model(TOKEN_IDS[None]).logits[0]


@pytest.fixture(
    scope="module", params=[name for name in FAMILIES if "text_config" not in FAMILIES[name]]
)
def checkpoint(request, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp(request.param), FAMILIES[request.param])


def test_logits_equal_those_of_transformers(checkpoint):
    expected = transformers_logits(checkpoint)
    assert expected.std() > 0.2, "too uniform to tell right from wrong"
    logits = compute_logits(load(checkpoint), [len(TOKEN_IDS)])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)


def test_a_prompt_in_chunks_gives_the_same_logits(checkpoint):
    model = load(checkpoint)
    whole = compute_logits(model, [len(TOKEN_IDS)])
    torch.testing.assert_close(compute_logits(model, [13, 1, 1, 25]), whole, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_to_float32_as_that_of_transformers(checkpoint, dtype):
    if ModelConfig.from_checkpoint(checkpoint).experts:
        pytest.skip("rounded logits choose other experts: the error is as large as the result")
    exact = transformers_logits(checkpoint)
    error_of_transformers = (transformers_logits(checkpoint, dtype).float() - exact).std()
    model = load(checkpoint, dtype)
    logits = compute_logits(model, [len(TOKEN_IDS)])
    assert logits.dtype == dtype
    assert (logits.float() - exact).std() < 1.2 * error_of_transformers


def test_every_option_changes_the_logits(tmp_path):
    """Or the comparison with transformers would prove nothing about it."""
    windowed = FAMILIES["qwen2-window"]
    for name, (config, changes) in {
        "window": (windowed, {"use_sliding_window": False}),
        "window's width": (windowed, {"sliding_window": 6}),
        "window's layers": (windowed, {"max_window_layers": 2}),
        "nope layers": (FAMILIES["smollm3"], {"no_rope_layers": [1, 1, 1, 1]}),
        "linear": (FAMILIES["llama-linear-rope"], {"rope_scaling": None}),
        "llama3": (FAMILIES["llama3-rope"], {"rope_scaling": None}),
        "yarn": (FAMILIES["qwen2-yarn"], {"rope_scaling": None}),
        "theta": (FAMILIES["llama"], {"rope_theta": 1e6}),
        "eps": (FAMILIES["llama"], {"rms_norm_eps": 0.1}),
        "activation": (FAMILIES["llama-gelu"], {"hidden_act": "silu"}),
        "softcap of scores": (FAMILIES["gemma2"], {"attn_logit_softcapping": 50.0}),
        "softcap of logits": (FAMILIES["gemma2"], {"final_logit_softcapping": 0.5}),
        "scale of scores": (FAMILIES["gemma2"], {"query_pre_attn_scalar": 3}),
        "theta in windows": (FAMILIES["gemma3"], {"rope_local_base_freq": 1e6}),
        "rotated share": (FAMILIES["glm4"], {"partial_rotary_factor": 0.5}),
        "embeddings": (FAMILIES["granite"], {"embedding_multiplier": 9.0}),
        "sub-layers": (FAMILIES["granite"], {"residual_multiplier": 0.9}),
        "queries that grow": (FAMILIES["ministral3"], {"rope_parameters": STEADY_QUERIES}),
        "gate's limit": (FAMILIES["gpt-oss"], {"swiglu_limit": 7.0}),
        "gate's slope": (FAMILIES["gpt-oss"], {"swiglu_alpha": 1.0}),
        "truncated yarn": (FAMILIES["gpt-oss"], {"rope_scaling": TRUNCATED}),
    }.items():
        pair = [
            compute_logits(load(write_checkpoint(tmp_path / name / key, option)), [40])
            for key, option in {"as it is": config, "changed": config | changes}.items()
        ]
        assert (pair[0] - pair[1]).abs().max() > 0.05, name


def test_a_position_beyond_those_prepared_for_is_an_error(tmp_path):
    model = load(write_checkpoint(tmp_path), max_positions=39)
    with pytest.raises(IndexError):
        compute_logits(model, [40])


def test_no_gradients_are_recorded(tmp_path):
    assert not compute_logits(load(write_checkpoint(tmp_path)), [40]).requires_grad


def rms(x):
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()


EPS = 1e-6
PLACES = {
    "before": NormNames(),
    "behind": NormNames(None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "around": NormNames(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_norms_are_where_the_family_has_them(tmp_path, monkeypatch, place):
    """Sub-layers that double their input show which vectors they were given."""
    names = PLACES[place]
    write_checkpoint(tmp_path, FAMILIES["llama"])
    config = replace(ModelConfig.from_checkpoint(tmp_path), norms=names, rms_norm_eps=EPS)
    layer = Decoder(config, torch.float32, torch.device("cpu")).layers[0]
    for module in layer.modules():
        if isinstance(module, RMSNorm):
            module.weight.fill_(1)
    monkeypatch.setattr(layer.self_attn, "forward", lambda x, *_: 2 * x)
    monkeypatch.setattr(layer.mlp, "forward", lambda x: 3 * x)
    x = torch.randn(5, config.hidden_size, generator=torch.Generator().manual_seed(0))
    norms = [rms if name else (lambda x: x) for name in astuple(names)]
    middle = x + norms[1](2 * norms[0](x))
    expected = middle + norms[3](3 * norms[2](middle))
    delta, residual = layer.forward(x.clone(), None, None, None, None)
    torch.testing.assert_close(delta + residual, expected)


@pytest.mark.parametrize("place", PLACES)
def test_a_checkpoint_has_the_norms_that_the_family_names(tmp_path, place):
    write_checkpoint(tmp_path, FAMILIES["llama"])
    config = replace(ModelConfig.from_checkpoint(tmp_path), norms=PLACES[place])
    model = Decoder(config, torch.float32, torch.device("cpu"))
    prefix = "model.layers.0."
    found = {name for name in checkpoint_tensors(model) if name.startswith(prefix)}
    norms = {f"{prefix}{name}.weight" for name in astuple(PLACES[place]) if name}
    assert {name for name in found if name.endswith("layernorm.weight")} == norms
    assert sum(each.numel() for each in model.parameters()) == config.num_parameters


class Int8Linear(Linear):
    """A projection with int8 weights and a scale per row."""

    def __init__(self, in_size, parts, bias):
        super().__init__(in_size, parts, bias)
        self.weight = parameter(sum(parts.values()), in_size, dtype=torch.int8)
        self.scale = parameter(sum(parts.values()), dtype=torch.float32)

    def quantize(self, weight):
        self.scale.copy_(weight.float().abs().amax(dim=1) / 127)
        self.weight.copy_((weight.float() / self.scale[:, None]).round())

    def dequantized(self):
        return self.weight * self.scale[:, None]

    def forward(self, x, out=None):
        x = computed(x)
        return torch.nn.functional.linear(x, self.dequantized().to(x.dtype), self.bias)


def quantizes_layers(path, projection):
    """As formats do that leave the head as it is."""
    if path == "lm_head" or type(projection) is not Linear:
        return projection
    return Int8Linear(projection.in_size, projection.parts, projection.bias is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_projection_of_another_class_is_put_in_by_its_path(tmp_path, dtype):
    plain = load(write_checkpoint(tmp_path, FAMILIES["llama-mqa-biases"]), dtype)
    config = ModelConfig.from_checkpoint(tmp_path)
    modules = Modules(convert=quantizes_layers)
    model = Decoder(config, dtype, torch.device("cpu"), modules=modules)
    assert type(model.lm_head) is Linear
    weights = dict(plain.named_parameters())
    for path, module in model.named_modules():
        if isinstance(module, Int8Linear):
            assert (module.weight.dtype, module.scale.dtype) == (torch.int8, torch.float32)
            module.quantize(weights[f"{path}.weight"])
            module.bias.copy_(weights[f"{path}.bias"])
            plain.get_submodule(path).weight.copy_(module.dequantized())
    for path, own in model.named_parameters():
        if path in weights and not isinstance(
            model.get_submodule(path.rpartition(".")[0]), Int8Linear
        ):
            own.copy_(weights[path])
    torch.testing.assert_close(
        compute_logits(model, [len(TOKEN_IDS)]), compute_logits(plain, [len(TOKEN_IDS)])
    )
