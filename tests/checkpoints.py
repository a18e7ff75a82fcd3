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
}
"""Name -> config.json."""


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
    weights = {}
    for name, shape in tensor_shapes(config).items():
        numbers = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            numbers = 1 + 0.2 * numbers
        elif name.endswith("bias"):
            numbers *= 0.3
        elif name != "model.embed_tokens.weight":
            # Twice the scale that keeps lengths: the layers must outweigh the embedding in the
            # residual stream, or tied embeddings would have each token predict itself.
            numbers *= 2 * shape[-1] ** -0.5
        weights[name] = numbers
    return weights


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that a checkpoint with this config.json has, written out independently."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    q_size = config["num_attention_heads"] * head_dim
    kv_size = config["num_key_value_heads"] * head_dim
    qwen2 = config["model_type"] == "qwen2"
    attention_bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    linears = {
        "self_attn.q_proj": (q_size, hidden, attention_bias or qwen2),
        "self_attn.k_proj": (kv_size, hidden, attention_bias or qwen2),
        "self_attn.v_proj": (kv_size, hidden, attention_bias or qwen2),
        "self_attn.o_proj": (hidden, q_size, attention_bias),
        "mlp.gate_proj": (inner, hidden, mlp_bias),
        "mlp.up_proj": (inner, hidden, mlp_bias),
        "mlp.down_proj": (hidden, inner, mlp_bias),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config["model_type"] == "qwen3":
        norms |= {"self_attn.q_norm": head_dim, "self_attn.k_norm": head_dim}
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, (out_size, in_size, bias) in linears.items():
            shapes[f"{prefix}.{name}.weight"] = (out_size, in_size)
            if bias:
                shapes[f"{prefix}.{name}.bias"] = (out_size,)
        for name, size in norms.items():
            shapes[f"{prefix}.{name}.weight"] = (size,)
    return shapes


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
