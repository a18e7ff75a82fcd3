"""Tiny random Hugging Face checkpoints, one for each option that a supported family has.

They are written by hand, without transformers and without the engine, so that they are a test of
both. The weights are scaled such that every part of the network matters for the logits, which are
far from uniform, and that greedy continuations don't collapse to one repeated token.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

EOS_TOKEN = "<|endoftext|>"
SPECIAL_TOKENS = [EOS_TOKEN, "<|im_start|>", "<|im_end|>"]
MERGES = ["th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "ou", "ing", "the", "and"]

TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
"""Tokens of models that call tools: they are not special, but texts."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TOOL_TEMPLATE = """
{%- if tools %}
    {{- '<|im_start|>system\nTools:' }}
    {%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.reasoning_content %}
        {{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}
    {%- endif %}
    {%- if message.tool_call_id %}{{- '[' + message.tool_call_id + '] ' }}{%- endif %}
    {{- message.content or '' }}
    {%- for call in message.tool_calls or [] %}
        {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- (call.function.arguments | tojson) + '}\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""
"""In the manner of Qwen3's."""

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCAB_SIZE = 288
"""Some more than the tokenizer knows, as in most real checkpoints."""

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": len(BYTES),
}


def _config(architecture: str, model_type: str, **changes: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": model_type, **_BASE, **changes}


def _llama(**changes: Any) -> dict[str, Any]:
    return _config("LlamaForCausalLM", "llama", **changes)


def _qwen3(**changes: Any) -> dict[str, Any]:
    return _config("Qwen3ForCausalLM", "qwen3", **{"head_dim": 16, **changes})


def _qwen3_moe(**changes: Any) -> dict[str, Any]:
    experts = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
    return _config("Qwen3MoeForCausalLM", "qwen3_moe", **{"head_dim": 16, **experts, **changes})


def _gemma(version: int, **changes: Any) -> dict[str, Any]:
    """Gemma's config.json names its activation in another key, from the second version on."""
    key = "hidden_act" if version == 1 else "hidden_activation"
    name = f"Gemma{'' if version == 1 else version}ForCausalLM"
    model_type = {1: "gemma", 2: "gemma2", 3: "gemma3_text"}[version]
    fixed = {"head_dim": 16, "hidden_act": None, key: "gelu_pytorch_tanh", "pad_token_id": None}
    return _config(name, model_type, **fixed, tie_word_embeddings=True, **changes)


def _nested(architecture: str, model_type: str, text: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of a model of several modalities with this text model."""
    outer = {key: text[key] for key in ("tie_word_embeddings", "torch_dtype", "eos_token_id")}
    text = {key: value for key, value in text.items() if key not in outer}
    del text["architectures"]
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 28,
        "patch_size": 14,
    }
    return {
        "architectures": [architecture],
        "model_type": model_type,
        **outer,
        "text_config": text,
        "vision_config": vision,
    }


def _longrope(short: list[float], long: list[float]) -> dict[str, Any]:
    return {"type": "longrope", "short_factor": short, "long_factor": long}


_GLM = {"head_dim": 16, "attention_bias": True, "partial_rotary_factor": 0.5, "pad_token_id": None}
_GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.1,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.5,
}
_WINDOWED = {"num_hidden_layers": 4, "sliding_window": 7}
_GPT_OSS = {
    **_WINDOWED,
    "head_dim": 16,
    "num_local_experts": 5,
    "num_experts_per_tok": 3,
    "attention_bias": True,
    "swiglu_limit": 1.5,
    "rope_theta": 1000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
    },
    "pad_token_id": None,
}
_MINISTRAL_3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 16.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.3,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _llama(rope_theta=10000.0),
    "llama-mha-tied": _llama(num_key_value_heads=4, tie_word_embeddings=True),
    "llama-mqa-biases": _llama(num_key_value_heads=1, attention_bias=True, mlp_bias=True),
    "llama-gelu": _llama(hidden_act="gelu_pytorch_tanh"),
    "llama-linear-rope": _llama(rope_scaling={"type": "linear", "factor": 4.0}),
    "llama3-rope": _llama(
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama-v5-config": {
        key: value
        for key, value in _llama(
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, dtype="float32"
        ).items()
        if key != "torch_dtype"
    },
    "mistral": _config("MistralForCausalLM", "mistral", sliding_window=None, head_dim=16),
    "mistral-window": _config("MistralForCausalLM", "mistral", sliding_window=7),
    "qwen2": _config("Qwen2ForCausalLM", "qwen2", rope_theta=1e6, tie_word_embeddings=True),
    "qwen2-window": _config(
        "Qwen2ForCausalLM", "qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen2-yarn": _config(
        "Qwen2ForCausalLM",
        "qwen2",
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    ),
    "qwen3": _qwen3(rope_theta=1e6, tie_word_embeddings=True),
    "qwen3-bias-layer-types": _qwen3(
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mixtral": _config(
        "MixtralForCausalLM",
        "mixtral",
        intermediate_size=24,
        num_local_experts=5,
        num_experts_per_tok=2,
        sliding_window=None,
    ),
    "qwen3-moe": _qwen3_moe(norm_topk_prob=True),
    "qwen3-moe-some-dense": _qwen3_moe(
        num_hidden_layers=4,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=7,
        tie_word_embeddings=True,
    ),
    "smollm3": _config(
        "SmolLM3ForCausalLM",
        "smollm3",
        num_hidden_layers=4,
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=None,
    ),
    "smollm3-nope-window": _config(
        "SmolLM3ForCausalLM",
        "smollm3",
        no_rope_layers=[1, 0, 1],
        use_sliding_window=True,
        sliding_window=9,
        pad_token_id=None,
        bos_token_id=None,
    ),
    "ministral": _config(
        "MinistralForCausalLM",
        "ministral",
        head_dim=16,
        sliding_window=6,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
    "ministral3": _config(
        "Ministral3ForCausalLM", "ministral3", head_dim=16, rope_parameters=_MINISTRAL_3_ROPE
    ),
    "phi3": _config("Phi3ForCausalLM", "phi3", sliding_window=9, pad_token_id=None),
    "phi4-longrope": _config(
        "Phi3ForCausalLM",
        "phi3",
        hidden_size=64,
        pad_token_id=None,
        partial_rotary_factor=0.75,
        original_max_position_embeddings=256,
        rope_scaling=_longrope([1.0, 1.1, 1.3, 1.7, 2.0, 2.5], [9.0] * 6),
        tie_word_embeddings=True,
    ),
    "olmo2": _config("Olmo2ForCausalLM", "olmo2", attention_bias=True, pad_token_id=None),
    "olmo3": _config(
        "Olmo3ForCausalLM",
        "olmo3",
        **_WINDOWED,
        pad_token_id=None,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "granite": _config("GraniteForCausalLM", "granite", **_GRANITE, tie_word_embeddings=True),
    "granite-biases": _config(
        "GraniteForCausalLM", "granite", **_GRANITE, attention_bias=True, mlp_bias=True
    ),
    "gemma": _gemma(1, num_key_value_heads=1),
    "gemma2": _gemma(
        2,
        **_WINDOWED,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
    ),
    "gemma3": _gemma(
        3,
        **_WINDOWED,
        sliding_window_pattern=3,
        query_pre_attn_scalar=24,
        rope_theta=1e6,
        rope_local_base_freq=1e2,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    "gemma3-layer-types": _gemma(
        3,
        sliding_window=9,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        attention_bias=True,
        final_logit_softcapping=4.0,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
        },
    ),
    "gpt-oss": _config("GptOssForCausalLM", "gpt_oss", **_GPT_OSS),
    "glm": _config("GlmForCausalLM", "glm", **_GLM),
    "glm4": _config("Glm4ForCausalLM", "glm4", **_GLM | {"partial_rotary_factor": 0.25}),
    "gemma3-text-part": _nested(
        "Gemma3ForConditionalGeneration", "gemma3", _gemma(3, **_WINDOWED, sliding_window_pattern=2)
    ),
    "mistral3-text-part": _nested(
        "Mistral3ForConditionalGeneration",
        "mistral3",
        _config("MistralForCausalLM", "mistral", sliding_window=None, head_dim=16),
    ),
}
"""Name -> config.json."""

QUANTIZED: dict[str, dict[str, Any]] = {
    "gpt-oss-mxfp4": {
        **FAMILIES["gpt-oss"],
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens", "lm_head"],
        },
    }
}
"""The same for weights that are quantized, and that transformers dequantizes."""


def write_checkpoint(
    folder: Path, config: Mapping[str, Any] = FAMILIES["llama"], *, seed: int = 0, shards: int = 1
) -> Path:
    """Write config.json, random float32 weights and a tokenizer to ``folder``, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_weights(folder, random_weights(config, seed), shards)
    write_tokenizer(folder)
    return folder


def random_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Every tensor of the checkpoint, by its name."""
    generator = torch.Generator().manual_seed(seed)
    text = text_part(config)
    is_gemma = text["model_type"].startswith("gemma")
    factor = 4 * text["hidden_size"] ** 0.5 if is_gemma else text.get("embedding_multiplier", 1)
    weights = {}
    for name, shape in tensor_shapes(config).items():
        if name.endswith("_blocks"):
            weights[name] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            continue
        if name.endswith("_scales"):  # of about the numbers that are drawn for other matrices
            weights[name] = torch.randint(122, 127, shape, dtype=torch.uint8, generator=generator)
            continue
        numbers = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            numbers = (not is_gemma) + 0.2 * numbers
        elif name.endswith("bias"):
            numbers *= 0.3
        elif name.endswith("embed_tokens.weight"):
            numbers /= factor
        else:
            # Twice the scale that keeps lengths: the layers must outweigh the embedding in the
            # residual stream, or tied embeddings would have each token predict itself.
            in_size = shape[-2] if is_transposed(name) else shape[-1]
            numbers *= 2 * in_size**-0.5
        weights[name] = numbers
    return weights


def is_transposed(name: str) -> bool:
    """Whether a tensor holds the matrices of all experts, columns first."""
    return name.endswith(("experts.gate_up_proj", "experts.down_proj"))


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config.json of the text model of a model of several modalities, or the config itself."""
    return {**config, **config["text_config"]} if "text_config" in config else config


ONLY_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
SANDWICH = ("input_layernorm", "pre_feedforward_layernorm", *ONLY_AFTER)
NORMS = {
    "olmo2": ONLY_AFTER,
    "olmo3": ONLY_AFTER,
    "gemma2": SANDWICH,
    "gemma3_text": SANDWICH,
    "glm4": (
        "input_layernorm",
        "post_self_attn_layernorm",
        "post_attention_layernorm",
        "post_mlp_layernorm",
    ),
}
"""``model_type`` -> names of a layer's norms, where they aren't Llama's."""


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that a checkpoint with this config.json has, written out independently."""
    if "text_config" in config:
        text = {key: value for key, value in text_part(config).items() if key != "text_config"}
        renamed = {
            name.replace("model.", "model.language_model.", 1): shape
            for name, shape in tensor_shapes(text).items()
        }
        return {**renamed, "model.vision_tower.patch.weight": (4, 4)}
    hidden = config["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, (out_size, in_size, bias) in layer_linears(config, layer).items():
            shapes[f"{prefix}.{name}.weight"] = (out_size, in_size)
            if bias:
                shapes[f"{prefix}.{name}.bias"] = (out_size,)
        for name, size in layer_norms(config).items():
            shapes[f"{prefix}.{name}.weight"] = (size,)
        if config["model_type"] == "gpt_oss":
            shapes[f"{prefix}.self_attn.sinks"] = (config["num_attention_heads"],)
            for name, shape in stacked_shapes(config).items():
                shapes[f"{prefix}.mlp.experts.{name}"] = shape
    return shapes


def stacked_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a layer of gpt-oss that hold all experts."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    count = config["num_local_experts"]
    shapes: dict[str, tuple[int, ...]] = {
        "gate_up_proj_bias": (count, 2 * inner),
        "down_proj_bias": (count, hidden),
    }
    for name, in_size, out_size in (
        ("gate_up_proj", hidden, 2 * inner),
        ("down_proj", inner, hidden),
    ):
        if "quantization_config" in config:
            shapes[f"{name}_blocks"] = (count, out_size, in_size // 32, 16)
            shapes[f"{name}_scales"] = (count, out_size, in_size // 32)
        else:
            shapes[name] = (count, in_size, out_size)
    return shapes


def head_sizes(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """The length of a head, of all queries and of all keys of a token."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return head_dim, heads * head_dim, kv_heads * head_dim


def layer_linears(config: Mapping[str, Any], layer: int) -> dict[str, tuple[int, int, bool]]:
    """Output size, input size and bias of a layer's projections."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    model_type = config["model_type"]
    _, q_size, kv_size = head_sizes(config)
    attention_bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    qkv_bias = attention_bias or model_type == "qwen2"
    if model_type == "phi3":
        linears = {"self_attn.qkv_proj": (q_size + 2 * kv_size, hidden, False)}
    else:
        linears = {
            "self_attn.q_proj": (q_size, hidden, qkv_bias),
            "self_attn.k_proj": (kv_size, hidden, qkv_bias),
            "self_attn.v_proj": (kv_size, hidden, qkv_bias),
        }
    linears["self_attn.o_proj"] = (
        hidden,
        q_size,
        attention_bias and not model_type.startswith("glm"),
    )
    if model_type == "gpt_oss":
        return linears | {"mlp.router": (config["num_local_experts"], hidden, True)}
    if experts := expert_shapes(config, layer):
        return linears | experts
    if model_type in ("phi3", "glm", "glm4"):
        linears["mlp.gate_up_proj"] = (2 * inner, hidden, False)
    else:
        linears["mlp.gate_proj"] = linears["mlp.up_proj"] = (inner, hidden, mlp_bias)
    return {**linears, "mlp.down_proj": (hidden, inner, mlp_bias)}


def expert_shapes(config: Mapping[str, Any], layer: int) -> dict[str, tuple[int, int, bool]]:
    """The projections of a layer's router and experts; none if the layer has an MLP."""
    hidden = config["hidden_size"]
    if config["model_type"] == "mixtral":
        inner, count = config["intermediate_size"], config["num_local_experts"]
        folder, names = "block_sparse_moe", ("w1", "w3", "w2")
    elif config["model_type"] == "qwen3_moe":
        sparse = (layer + 1) % config.get("decoder_sparse_step", 1) == 0
        if not sparse or layer in config.get("mlp_only_layers", []):
            return {}
        inner, count = config["moe_intermediate_size"], config["num_experts"]
        folder, names = "mlp", ("gate_proj", "up_proj", "down_proj")
    else:
        return {}
    gate, up, down = names
    shapes = {f"{folder}.gate": (count, hidden, False)}
    for expert in range(count):
        shapes[f"{folder}.experts.{expert}.{gate}"] = (inner, hidden, False)
        shapes[f"{folder}.experts.{expert}.{up}"] = (inner, hidden, False)
        shapes[f"{folder}.experts.{expert}.{down}"] = (hidden, inner, False)
    return shapes


def layer_norms(config: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of a layer's norms."""
    head_dim, q_size, kv_size = head_sizes(config)
    model_type = config["model_type"]
    names = NORMS.get(model_type, ("input_layernorm", "post_attention_layernorm"))
    norms = dict.fromkeys(names, config["hidden_size"])
    if model_type in ("qwen3", "qwen3_moe", "gemma3_text"):
        norms |= {"self_attn.q_norm": head_dim, "self_attn.k_norm": head_dim}
    if model_type in ("olmo2", "olmo3"):
        norms |= {"self_attn.q_norm": q_size, "self_attn.k_norm": kv_size}
    return norms


def write_weights(folder: Path, weights: Mapping[str, Tensor], shards: int = 1) -> None:
    """Write ``model.safetensors``, or so many shards and their index."""
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(weights)
    weight_map = {}
    for shard in range(shards):
        file_name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard::shards]
        save_file({name: weights[name] for name in part}, folder / file_name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file_name)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def write_tool_checkpoint(folder: Path) -> Path:
    """Write a checkpoint of a model with a tool template, and with tokens for its tags."""
    config = FAMILIES["qwen3"] | {"max_position_embeddings": 8192}
    write_checkpoint(folder, config)
    write_tokenizer(folder, TOOL_TEMPLATE, TAGS)
    return folder


def write_tokenizer(
    folder: Path, chat_template: str = CHAT_TEMPLATE, tags: Sequence[str] = ()
) -> None:
    """Write a byte-level BPE tokenizer with a few merges, special tokens and a chat template."""
    tokens = [*BYTES, *SPECIAL_TOKENS, *MERGES]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    merges = [(merge[:-1], merge[-1]) for merge in MERGES]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS_TOKEN,
        "chat_template": chat_template,
    }
    write_json(folder / "tokenizer_config.json", settings)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as Hugging Face does."""
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
