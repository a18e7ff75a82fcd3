"""The part of a model that each of several ranks computes, as a smaller model.

Nothing here imports torch.
"""

from dataclasses import replace
from math import lcm

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.quantization_config import Int4, Quantization
from minimal_vllm.model.quantized_experts import experts_format
from minimal_vllm.model.weight_bytes import projections


def divide(model: ModelConfig, ranks: int) -> ModelConfig:
    """Return the hyperparameters of the part of a model that each of ``ranks`` ranks holds.

    Attention heads, the inner sizes of MLPs and experts, and the vocabulary's rows are divided.
    Where there are fewer key-value heads than ranks, several ranks hold the same one.

    Raises:
        ValueError: the model can't be divided evenly, or not without cutting what its quantized
            weights have a scale for.
    """
    if ranks == 1:
        return model
    kv_heads = model.num_kv_heads
    if kv_heads >= ranks:
        own_kv_heads = _share("key-value heads", kv_heads, ranks)
    elif ranks % kv_heads == 0:
        own_kv_heads = 1
    else:
        raise ValueError(
            f"tensor_parallel_size is {ranks}, but must be a divisor or a multiple of the model's "
            f"{kv_heads} key-value heads"
        )
    is_dense = model.num_sparse_layers < model.num_layers
    inner, experts = model.intermediate_size, model.experts
    own = replace(
        model,
        ranks=ranks,
        num_heads=_share("attention heads", model.num_heads, ranks),
        num_kv_heads=own_kv_heads,
        intermediate_size=_share("MLP channels", inner, ranks) if is_dense else inner,
        experts=experts
        and replace(experts, inner_size=_share("channels per expert", experts.inner_size, ranks)),
    )
    if model.quantization is not None:
        _check_quantization(model.quantization, model, own)
    return own


def _check_quantization(quantization: Quantization, whole: ModelConfig, own: ModelConfig) -> None:
    """Check that no rank's share begins or ends within what is quantized together."""
    stored = quantization.format
    if isinstance(stored, Int4) and stored.ordered and stored.group_size is not None:
        raise ValueError(
            f"tensor_parallel_size is {own.ranks}, but each rank's columns would need the scales "
            f"of all groups, because the weights have an order of their own (desc_act): choose a "
            f"checkpoint without it"
        )
    rows, columns = stored.kept_together
    if own.experts is not None and experts_format(own) is not None:
        unit = lcm(rows, columns)
        _check_share("channels per expert", own.experts.inner_size, unit, own, stored.name)
    whole_sizes = projections(whole)
    for name, (own_rows, own_columns) in projections(own).items():
        if any(quantization.covers(f"model.layers.{i}.{name}") for i in range(own.num_layers)):
            whole_rows, whole_columns = whole_sizes[name]
            if own_rows != whole_rows:
                _check_share(f"rows of {name}", own_rows, rows, own, stored.name)
            if own_columns != whole_columns:
                _check_share(f"columns of {name}", own_columns, columns, own, stored.name)


def _check_share(what: str, size: int, unit: int, own: ModelConfig, stored: str) -> None:
    if size % unit:
        raise ValueError(
            f"tensor_parallel_size is {own.ranks}, but each rank would have {size:,} {what}, which "
            f"must be a multiple of {unit} in this checkpoint ({stored})"
        )


def _share(what: str, size: int, ranks: int) -> int:
    if size % ranks:
        raise ValueError(
            f"tensor_parallel_size is {ranks}, but must be a divisor of the model's {size:,} {what}"
        )
    return size // ranks
