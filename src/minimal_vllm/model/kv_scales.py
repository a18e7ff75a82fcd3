"""Calibrated scales of keys and values in FP8, as some quantized checkpoints have them.

Such a checkpoint says for each layer by what keys and values are to be divided before they are
cached, so that the largest just fit into FP8's range. No kernel knows of it: weights make smaller
keys and values to begin with, and what reads them makes up for it::

    key / k_scale        rows of k_proj, or the norm of keys       scores · k_scale
    value / v_scale      rows of v_proj                            columns of o_proj · v_scale

Scales are rounded up to powers of 2, so that the weights' numbers lose nothing.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minimal_vllm.formats.gguf_file import find_gguf
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.layers import SelfAttention
from minimal_vllm.model.linear import Projection
from minimal_vllm.model.loader import checkpoint_files
from minimal_vllm.model.multimodal import text_tensor_name
from minimal_vllm.model.packed_linear import PackedProjection
from minimal_vllm.model.quantization.int8 import PackedInt8Weight
from minimal_vllm.model.quantization.weight import QuantizedWeight
from minimal_vllm.model.safetensors_file import SafetensorsTensor, read_header

_PLACES = ("{kind}_scale", "{kind}_proj.{kind}_scale")
"""Names of a scale in a layer's ``self_attn``; ``kind`` is k or v."""


def use_kv_scales(model: Decoder, checkpoint: Path) -> None:
    """Make the model's keys and values as small as its checkpoint's scales say.

    To be called once the weights are loaded, for a cache in FP8. A layer without scales stays as it
    is.

    Raises:
        ValueError: a scale isn't one positive number, a file can't be read, or the weights are
            packed.
    """
    if find_gguf(checkpoint) is not None:
        return
    stored: dict[str, SafetensorsTensor] = {}
    for file in checkpoint_files(checkpoint):
        for name, tensor in read_header(file).items():
            stored[(text_tensor_name(name) or "") if model.config.part_of else name] = tensor
    for path, module in model.named_modules():
        if isinstance(module, SelfAttention):
            prefix = f"model.{path}."
            _apply(module, _scale(stored, prefix, "k"), _scale(stored, prefix, "v"))


def _scale(stored: Mapping[str, SafetensorsTensor], prefix: str, kind: str) -> float:
    """Return a scale, rounded up to a power of 2; 1 if there is none."""
    for place in _PLACES:
        name = prefix + place.format(kind=kind)
        if name in stored:
            numbers = torch.empty(stored[name].shape)
            stored[name].copy_to(numbers)
            scale = float(numbers.max())
            if numbers.numel() != 1 or not 0 < scale < math.inf:
                raise ValueError(f"{stored[name].path}: {name} must be one positive number")
            return float(2 ** math.ceil(math.log2(scale)))
    return 1.0


def _apply(attention: SelfAttention, k_scale: float, v_scale: float) -> None:
    q_size = attention.num_heads * attention.head_dim
    kv_size = attention.num_kv_heads * attention.head_dim
    if attention.k_norm:  # it would undo what the rows do
        attention.k_norm.weight.div_(k_scale)
    else:
        _multiply(attention.qkv_proj, slice(q_size, q_size + kv_size), 1 / k_scale)
    attention.scale *= k_scale
    _multiply(attention.qkv_proj, slice(q_size + kv_size, q_size + 2 * kv_size), 1 / v_scale)
    _multiply(attention.o_proj, slice(None), v_scale, with_bias=False)


def _multiply(
    projection: Projection, rows: slice, factor: float, *, with_bias: bool = True
) -> None:
    """Multiply rows of a projection's matrix, or their scales, and of its bias, by a factor."""
    if factor == 1:
        return
    quantized = getattr(projection, "quantized", None)
    if isinstance(projection, PackedProjection) or isinstance(quantized, PackedInt8Weight):
        raise ValueError(
            "the checkpoint's k_scale and v_scale can't be used with weights that this CPU has "
            "packed: set kv_cache_dtype='auto'"
        )
    if projection.bias is not None and with_bias:
        projection.bias[rows].mul_(factor)
    if not isinstance(quantized, QuantizedWeight):
        projection.weight[rows].mul_(factor)
        return
    scale: Tensor = quantized.get_parameter("scale")
    rows_per_scale = quantized.out_size // len(scale)
    start, stop, _ = rows.indices(quantized.out_size)
    scale[start // rows_per_scale : stop // rows_per_scale].mul_(factor)
