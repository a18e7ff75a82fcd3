"""The part of a model that each of several ranks computes, as a smaller model.

Nothing here imports torch.
"""

from dataclasses import replace

from minimal_vllm.model.config import ModelConfig


def divide(model: ModelConfig, ranks: int) -> ModelConfig:
    """Return the hyperparameters of the part of a model that each of ``ranks`` ranks holds.

    Attention heads, the inner sizes of MLPs and experts, and the vocabulary's rows are divided.
    Where there are fewer key-value heads than ranks, several ranks hold the same one.

    Raises:
        ValueError: the model can't be divided evenly, or its weights are quantized.
    """
    if ranks == 1:
        return model
    if model.quantization is not None:
        raise ValueError(
            f"tensor_parallel_size is {ranks}, but quantized weights "
            f"({model.quantization.format.name}) can't be divided yet: load a checkpoint that is "
            f"not quantized, or leave the option out"
        )
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
    return replace(
        model,
        ranks=ranks,
        num_heads=_share("attention heads", model.num_heads, ranks),
        num_kv_heads=own_kv_heads,
        intermediate_size=_share("MLP channels", inner, ranks) if is_dense else inner,
        experts=experts
        and replace(experts, inner_size=_share("channels per expert", experts.inner_size, ranks)),
    )


def _share(what: str, size: int, ranks: int) -> int:
    if size % ranks:
        raise ValueError(
            f"tensor_parallel_size is {ranks}, but must be a divisor of the model's {size:,} {what}"
        )
    return size // ranks
