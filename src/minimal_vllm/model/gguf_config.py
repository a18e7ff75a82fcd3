"""Translating a GGUF file's metadata into the keys of a config.json.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Their meaning follows llama.cpp's
``convert_hf_to_gguf.py``, which writes most of these files.
"""

import re
from collections import Counter
from typing import Any

from minimal_vllm.formats.gguf_file import CONTROL, GgufFile

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",  # Mistral's models too: llama.cpp calls them llama
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""``general.architecture`` -> name of the architecture in a config.json."""

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor of factors that divide the rotary frequencies; in files of Llama 3.1 and later."""

# Keys without their prefix, the architecture's name -> keys of a config.json.
_CONFIG_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_REQUIRED = tuple(_CONFIG_KEYS)[:5]
_MAX_POSITIONS = 1 << 24
"""Longest plausible context, 16.8 million tokens; a larger number means a damaged file."""
_SCALING_KEYS = {
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
# Keys that are read elsewhere, or don't affect the output.
_OTHER_KEYS = {
    "vocab_size",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.finetuned",
    "attention.value_length",
    "tensor_data_layout",
    "pooling_type",
}
# Any other key may change the output, unless its value is 0, false or the one listed here.
_NEUTRAL = {
    "attention.causal": True,
    "rope.scale_linear": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
}

_EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
# A file names one end token, but most chat models have several. The others are recognized by their
# text, as in llama.cpp.
_END_TOKENS = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"}
    | {"<|end_of_text|>", "<EOT>", "<|EOT|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"}
)
_SAMPLING_KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


def config_json(file: GgufFile) -> dict[str, Any]:
    """Return the equivalent of the model's config.json.

    It has no ``rope_scaling`` if the file has the tensor ``ROPE_FACTORS`` instead.

    Raises:
        ValueError: the architecture, or a value that changes the output, is not supported, or the
            metadata contradicts the tensors.
    """
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(
            f"{file.path}: the architecture (general.architecture) is {name!r}, but must be one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    values = {
        key.removeprefix(f"{name}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{name}.")
    }
    _refuse_unsupported(file, name, values)
    config = {ours: values[key] for key, ours in _CONFIG_KEYS.items() if key in values}
    config |= {
        "architectures": [ARCHITECTURES[name]],
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "dtype": _dtype(file),
        "eos_token_id": _end_token_ids(file),
    }
    if "head_dim" not in config:
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    _check_head_dims(file, values, config["head_dim"])
    scaling = _rope_scaling(file, values)
    return config | ({"rope_scaling": scaling} if scaling else {})


def generation_config_json(file: GgufFile) -> dict[str, Any]:
    """Return the equivalent of the model's generation_config.json: its sampling defaults."""
    return {
        ours: file.metadata[key] for key, ours in _SAMPLING_KEYS.items() if key in file.metadata
    }


def describe_types(file: GgufFile) -> str:
    """Return the types of the tensors, the one with most bytes first, such as ``Q4_K, Q6_K``."""
    return ", ".join(_types(file))


def main_type(file: GgufFile) -> str:
    """Return the type of most of the file's bytes."""
    return _types(file)[0]


def _types(file: GgufFile) -> list[str]:
    sizes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        sizes[tensor.type_name] += tensor.num_bytes
    return [name for name, _ in sizes.most_common()]


def _refuse_unsupported(file: GgufFile, name: str, values: dict[str, Any]) -> None:
    for key in _REQUIRED:
        if type(values.get(key)) is not int or values[key] < 1:
            found = f"{values[key]!r}" if key in values else "missing"
            raise ValueError(
                f"{file.path}: {name}.{key} is {found}, but must be a positive integer"
            )
    known = {*_CONFIG_KEYS, *_SCALING_KEYS, *_OTHER_KEYS}
    for key, value in values.items():
        if key not in known and value and value != _NEUTRAL.get(key):
            raise ValueError(f"{file.path}: {name}.{key} = {value!r} is not supported")
    _check_sizes(file, name, values)
    num_tokens = len(_tokens(file, "tokens"))
    num_embeddings = file.tensors["token_embd.weight"].shape[0]
    if num_tokens > num_embeddings:
        raise ValueError(
            f"{file.path}: its tokenizer has {num_tokens} tokens, but token_embd.weight has only "
            f"{num_embeddings} rows: the file is damaged"
        )


def _check_sizes(file: GgufFile, name: str, values: dict[str, Any]) -> None:
    """Compare the metadata's sizes with the tensors, before memory of these sizes is allocated."""
    blocks = {match[1] for each in file.tensors if (match := re.match(r"blk\.(\d+)\.", each))}
    sizes = {"block_count": len(blocks)}
    for key, tensor, dimension in (
        ("embedding_length", "token_embd.weight", 1),
        ("feed_forward_length", "blk.0.ffn_down.weight", 1),
    ):
        if tensor not in file.tensors or len(file.tensors[tensor].shape) != 2:
            raise ValueError(f"{file.path} has no matrix {tensor}: it is not a complete model")
        sizes[key] = file.tensors[tensor].shape[dimension]
    if values["context_length"] > _MAX_POSITIONS:
        raise ValueError(
            f"{file.path}: {name}.context_length is {values['context_length']:,}: the file is "
            "damaged"
        )
    for key, size in sizes.items():
        if values[key] != size:
            raise ValueError(
                f"{file.path}: {name}.{key} is {values[key]}, but the tensors have {size}: the "
                "file is damaged"
            )


def _check_head_dims(file: GgufFile, values: dict[str, Any], head_dim: int) -> None:
    for key in ("attention.value_length", "rope.dimension_count"):
        if values.get(key, head_dim) != head_dim:
            raise ValueError(
                f"{file.path}: {key} is {values[key]!r}, but only the head size, {head_dim}, is "
                "supported"
            )


def _rope_scaling(file: GgufFile, values: dict[str, Any]) -> dict[str, Any] | None:
    rope_type = values.get("rope.scaling.type", "none")
    if rope_type == "none":
        return None
    if rope_type == "longrope":
        raise ValueError(f"{file.path}: rope type 'longrope' is not supported in GGUF files")
    parameters = {ours: values[key] for key, ours in _SCALING_KEYS.items() if key in values}
    if rope_type == "linear":
        parameters = {"factor": parameters.get("factor")}
    return {"rope_type": rope_type, **parameters}


def _dtype(file: GgufFile) -> str:
    """Return the dtype to run in: float32 if most weights are float32, else bfloat16.

    A GGUF file doesn't say in which dtype its model was trained. Activations of a model trained in
    bfloat16 may exceed the range of float16.
    """
    return "float32" if main_type(file) == "F32" else "bfloat16"


def _tokens(file: GgufFile, key: str) -> list[Any]:
    """Return one of the tokenizer's lists in the metadata; empty if it has none."""
    found = file.metadata.get(f"tokenizer.ggml.{key}")
    return found if isinstance(found, list) else []


def _end_token_ids(file: GgufFile) -> list[int]:
    """Return the end tokens that the file names, then those recognized by their text."""
    named = [file.metadata.get(f"tokenizer.ggml.{key}") for key in _EOS_KEYS]
    if not all(each is None or type(each) is int for each in named):
        raise ValueError(f"{file.path}: {', '.join(_EOS_KEYS)} must be token ids, not {named}")
    known = [
        token_id
        for token_id, (token, kind) in enumerate(
            zip(_tokens(file, "tokens"), _tokens(file, "token_type"), strict=False)
        )
        if kind == CONTROL and token in _END_TOKENS
    ]
    return list(dict.fromkeys([each for each in named if each is not None] + known))
