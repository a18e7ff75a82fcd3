"""Models with known shapes, which can be simulated without any download."""

from pathlib import Path
from typing import Any

from minimal_vllm.model.config import ModelConfig, read_json
from minimal_vllm.model.hub import resolve_model


def _qwen3(layers: int, hidden: int, mlp: int, heads: int, *, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151_936,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }


def _qwen3_moe(layers: int, hidden: int, inner: int, heads: int) -> dict[str, Any]:
    return {
        **_qwen3(layers, hidden, 3 * hidden, heads, tied=False),
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": inner,
        "norm_topk_prob": True,
    }


def _llama3(layers: int, hidden: int, mlp: int, heads: int, *, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128_256,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return {
        "architectures": ["GptOssForCausalLM"],
        "vocab_size": 201_088,
        "num_hidden_layers": layers,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_attention_heads": 64,
        "num_local_experts": experts,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "mxfp4"},
    }


def _gemma3(layers: int, hidden: int, mlp: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "vocab_size": 262_208,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 131_072,
        "sliding_window": 1024,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "dtype": "bfloat16",
    }


PRESETS = {
    "qwen3-0.6b": _qwen3(28, 1024, 3072, 16, tied=True),
    "qwen3-1.7b": _qwen3(28, 2048, 6144, 16, tied=True),
    "qwen3-4b": _qwen3(36, 2560, 9728, 32, tied=True),
    "qwen3-8b": _qwen3(36, 4096, 12288, 32, tied=False),
    "qwen3-14b": _qwen3(40, 5120, 17408, 40, tied=False),
    "qwen3-32b": _qwen3(64, 5120, 25600, 64, tied=False),
    "qwen3-30b-a3b": _qwen3_moe(48, 2048, 768, 32),
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
    "gemma-3-4b": _gemma3(34, 2560, 10240, 8, 4),
    "gemma-3-12b": _gemma3(48, 3840, 15360, 16, 8),
    "llama-3.2-1b": _llama3(16, 2048, 8192, 32, tied=True),
    "llama-3.2-3b": _llama3(28, 3072, 8192, 24, tied=True),
    "llama-3.1-8b": _llama3(32, 4096, 14336, 32, tied=False),
    "llama-3.3-70b": _llama3(80, 8192, 28672, 64, tied=False),
}
"""Fields of each model's config.json that a simulation needs."""


def read_model_shape(model: str, revision: str | None, download_dir: str | None) -> ModelConfig:
    """Read the configuration of a model, without its weights.

    Args:
        model: name of a preset, path of a config.json or of a checkpoint's folder, or
            repository on the Hugging Face Hub.
        revision: revision on the hub. Default: the main branch.
        download_dir: folder for downloads. Default: Hugging Face's cache.

    Raises:
        ValueError: ``model`` is none of these, or its architecture is not supported.
    """
    if model.lower() in PRESETS:
        return ModelConfig.from_dict(PRESETS[model.lower()])
    if model.endswith(".json"):
        return ModelConfig.from_dict(read_json(Path(model).expanduser()))
    try:
        checkpoint = resolve_model(model, revision, download_dir, weights=False)
    except ValueError as error:
        raise ValueError(f"{error}; the simulator's presets are {', '.join(PRESETS)}") from error
    return ModelConfig.from_checkpoint(checkpoint)
