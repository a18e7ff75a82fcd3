"""Writing GGUF files as llama.cpp's converter does, with the ``gguf`` package's own writer.

The names, the permutation and the metadata are written out here once more, independently of the
engine: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from checkpoints import random_weights
from gguf import GGMLQuantizationType as Type
from torch import Tensor

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""``model_type`` of a config.json -> GGUF's architecture."""

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

# Where a block of a type that the package can't quantize to has its float16 scales.
_SCALES_AT = {
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
    Type.IQ4_NL: (0,),
    Type.IQ4_XS: (0,),
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor that Hugging Face calls ``name``."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        layer, _, part = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{layer}.{_NAMES[part]}.{kind}"
    return f"{_NAMES[stem]}.{kind}"


def permute(weight: Tensor, num_heads: int) -> Tensor:
    """What llama.cpp's converter does to the queries and keys of a Llama."""
    shape = weight.shape
    pairs = weight.reshape(num_heads, 2, shape[0] // num_heads // 2, *shape[1:])
    return pairs.swapaxes(1, 2).reshape(shape)


def quantized(numbers: Tensor, kind: Type, seed: int = 0) -> np.ndarray:
    """``numbers`` as the package quantizes them; random blocks of that size where it can't."""
    if kind not in _SCALES_AT:
        return gguf.quantize(numbers.numpy(), kind)
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(
        0, 256, (numbers.numel() // block_size, block_bytes), dtype=np.uint8, endpoint=False
    )

    def set_scales(scale: float) -> np.ndarray:
        for place in _SCALES_AT[kind]:
            blocks[:, place : place + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
        return blocks

    spread = gguf.dequantize(set_scales(1), kind).std()
    set_scales(float(numbers.std()) / spread)
    return blocks.reshape(numbers.shape[0], -1)


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    kind: Type = Type.F32,
    *,
    weights: Mapping[str, Tensor] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Write a model as a GGUF file, its matrices quantized to ``kind``.

    Returns the weights that a checkpoint with Hugging Face's names would have to hold: those that
    are left when what was quantized is dequantized.
    """
    weights = random_weights(config) if weights is None else weights
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, architecture)
    _write_metadata(writer, architecture, config)
    _write_values(writer, tokenizer_metadata() if tokenizer is None else tokenizer)
    _write_values(writer, metadata or {})
    left = {}
    for name, weight in weights.items():
        heads = {
            "self_attn.q_proj": config["num_attention_heads"],
            "self_attn.k_proj": config["num_key_value_heads"],
        }
        count = next((heads[part] for part in heads if part in name), None)
        is_permuted = architecture == "llama" and count is not None
        stored = permute(weight, count) if is_permuted else weight
        used = kind if weight.dim() == 2 else Type.F32
        numbers = quantized(stored.contiguous(), used)
        writer.add_tensor(gguf_name(name), numbers, raw_dtype=used)
        back = torch.from_numpy(gguf.dequantize(numbers, used)).reshape(weight.shape).float()
        left[name] = unpermute(back, count) if is_permuted else back
    for name, tensor in (extra_tensors or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return left


def split_gguf(path: Path, stem: Path, count: int) -> None:
    """Split a file as ``llama-gguf-split`` does: the first part has the metadata."""
    reader = gguf.GGUFReader(path)
    stem.parent.mkdir(parents=True, exist_ok=True)
    tensors = reader.tensors
    for part in range(count):
        name = f"{stem.name}-{part + 1:05d}-of-{count:05d}.gguf"
        architecture = reader.fields["general.architecture"].contents()
        writer = gguf.GGUFWriter(stem.with_name(name), architecture)
        if part == 0:
            for key, value in reader.fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture":
                    writer.add_key_value(key, value.contents(), *value.types[:2])
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(tensors))
        for tensor in tensors[part::count]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def unpermute(weight: Tensor, num_heads: int) -> Tensor:
    """Undo ``permute``, row by row."""
    rows = torch.arange(len(weight))
    return weight[permute(rows, num_heads).argsort()]


def _write_metadata(writer: gguf.GGUFWriter, name: str, config: Mapping[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10_000.0))
    writer.add_vocab_size(config["vocab_size"])
    head_dim = config.get("head_dim")
    if head_dim:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if name == "llama":
        own = head_dim or config["hidden_size"] // config["num_attention_heads"]
        writer.add_rope_dimension_count(own)


def _write_values(writer: gguf.GGUFWriter, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        match value:
            case list():
                writer.add_array(key, value)
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case _:
                writer.add_string(key, value)


def tokenizer_metadata(folder: Path | None = None, **changes: Any) -> dict[str, Any]:
    """The metadata of the byte-level tokenizer in a folder; of ``checkpoints``' without one."""
    if folder is None:
        from tempfile import TemporaryDirectory

        from checkpoints import write_tokenizer

        with TemporaryDirectory() as temporary:
            write_tokenizer(Path(temporary))
            return tokenizer_metadata(Path(temporary), **changes)
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = {token["content"]: token for token in stored["added_tokens"]}
    vocab = stored["model"]["vocab"] | {text: token["id"] for text, token in added.items()}
    tokens = sorted(vocab, key=lambda token: vocab[token])
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [_token_type(added.get(token)) for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in stored["model"]["merges"]],
        "tokenizer.chat_template": config.get("chat_template"),
    }
    for name, key in (("bos_token", "bos_token_id"), ("eos_token", "eos_token_id")):
        token = config.get(name)
        token = token["content"] if isinstance(token, dict) else token
        values[f"tokenizer.ggml.{key}"] = None if token is None else vocab[token]
    values |= changes
    return {key: value for key, value in values.items() if value is not None}


def _token_type(added: Mapping[str, Any] | None) -> int:
    if added is None:
        return gguf.TokenType.NORMAL
    return gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
