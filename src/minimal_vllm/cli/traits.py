"""Words for the options that set a model apart from a plain Llama."""

from collections import Counter
from collections.abc import Iterator

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.rope_config import RopeConfig


def describe_traits(model: ModelConfig) -> dict[str, str]:
    """Return the model's unusual options: what they concern -> what they are."""
    rows = {
        "Part of": model.part_of or "",
        "Experts": _experts(model),
        "Windows": _windows(model),
        "Rotation": "; ".join(_rotations(model)),
        "Norms": "; ".join(_norms(model)),
        "Sinks": "one for each query head" * model.attention_sinks,
        "Softcap": ", ".join(_softcaps(model)),
        "Multipliers": ", ".join(_multipliers(model)),
    }
    return {label: text for label, text in rows.items() if text}


def _experts(model: ModelConfig) -> str:
    if model.experts is None:
        return ""
    active = round(model.expected_parameters(1))
    return (
        f"{model.experts.count} in {model.num_sparse_layers} of {model.num_layers} layers, "
        f"{model.experts.per_token} for each token; {active:,} parameters are active"
    )


def _windows(model: ModelConfig) -> str:
    sizes = Counter(layer.window for layer in model.layers if layer.window is not None)
    parts = (f"{size:,} tokens in {count} layers" for size, count in sizes.items())
    return ", ".join(parts)


def _rotations(model: ModelConfig) -> Iterator[str]:
    unrotated = sum(not layer.rope for layer in model.layers)
    ropes = {"": model.rope, " in layers with a window": model.local_rope}
    for where, rope in ropes.items():
        if rope is not None:
            yield f"base {rope.theta:,.0f}{_scaling(rope)}{where}"
    if model.rope.share != 1:
        rotated = model.rope.rotary_dim(model.head_dim)
        yield f"{rotated} of a head's {model.head_dim} dimensions"
    if model.rope.pairs == "neighbors":
        yield "neighboring dimensions"
    if model.rope.query_growth:
        yield f"queries grow every {model.rope.query_growth.original_length:,} tokens"
    if unrotated:
        yield f"none in {unrotated} layers"


def _scaling(rope: RopeConfig) -> str:
    if rope.scaling is None:
        return ""
    name = type(rope.scaling).__name__.removesuffix("Scaling")
    factor = getattr(rope.scaling, "factor", None)
    return f", {name}" + (f" times {factor:g}" if factor else "")


def _norms(model: ModelConfig) -> Iterator[str]:
    if model.norms.count > 2:
        yield "before and after each sub-layer"
    elif model.norms.before_attention is None:
        yield "only after each sub-layer"
    match model.qk_norm:
        case "per head":
            yield "of each query and key head"
        case "all heads":
            yield "over all query heads and all key heads"


def _softcaps(model: ModelConfig) -> Iterator[str]:
    if model.attention_softcap is not None:
        yield f"{model.attention_softcap:g} for attention scores"
    if model.logits_softcap is not None:
        yield f"{model.logits_softcap:g} for logits"


def _multipliers(model: ModelConfig) -> Iterator[str]:
    if model.embedding_scale != 1:
        yield f"embeddings times {model.embedding_scale:g}"
    if model.residual_scale != 1:
        yield f"sub-layers times {model.residual_scale:g}"
    if model.attention_scale != model.head_dim**-0.5:
        yield f"attention scores times {model.attention_scale:g}"
    if model.logits_divisor != 1:
        yield f"logits / {model.logits_divisor:g}"
