"""Reading the settings that may differ from layer to layer: sliding windows, rotary embedding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minimal_vllm.model.experts_config import read_sparse_layers
from minimal_vllm.model.json_fields import entries, flag, integer
from minimal_vllm.model.registry import Family


@dataclass(frozen=True)
class LayerConfig:
    """Settings that may differ from layer to layer."""

    window: int | None
    """Sliding window: position i attends to positions i - window + 1 to i. None: to all up to i."""
    rope: bool
    """Whether queries and keys are rotated by their positions."""
    is_sparse: bool = False
    """Whether the layer has a mixture of experts instead of an MLP."""


def read_layers(raw: Mapping[str, Any], family: Family, num_layers: int) -> tuple[LayerConfig, ...]:
    """Return the settings of each layer that config.json describes.

    Args:
        raw: config.json with the family's defaults filled in and null values removed.
        family: the architecture's rules for what config.json leaves open.
        num_layers: number of layers.

    Raises:
        ValueError: config.json contradicts itself or the family.
    """
    rotated = _rotated_layers(raw, family, num_layers)
    sparse = [False] * num_layers
    if family.experts:
        sparse = read_sparse_layers(raw, family.experts, num_layers)
    window = _window(raw, family)
    sliding = _sliding_layers(raw, family, rotated) if window else [False] * num_layers
    if "layer_types" in raw:
        listed = _listed_as_sliding(raw, num_layers)
        if listed != sliding and (window is None or family.sliding == "always"):
            raise ValueError(
                "config.json: layer_types contradicts sliding_window or use_sliding_window, "
                f"according to which {sum(sliding)} of the {num_layers} layers have a sliding "
                "window"
            )
        sliding = listed
    return tuple(
        LayerConfig(window if slides else None, rope, is_sparse)
        for slides, rope, is_sparse in zip(sliding, rotated, sparse, strict=True)
    )


def _rotated_layers(raw: Mapping[str, Any], family: Family, num_layers: int) -> list[bool]:
    if "no_rope_layers" in raw:  # despite the key's name, 1 marks a layer *with* rope
        rotated = [bool(rope) for rope in entries(raw, "no_rope_layers", num_layers)[:num_layers]]
    elif family.has_nope_layers:
        interval = integer(raw, "no_rope_layer_interval")
        rotated = [(layer + 1) % interval != 0 for layer in range(num_layers)]
    else:
        rotated = [True] * num_layers
    if not family.has_nope_layers and not all(rotated):
        raise ValueError("config.json: no_rope_layers is only supported for SmolLM3ForCausalLM")
    return rotated


def _window(raw: Mapping[str, Any], family: Family) -> int | None:
    if "sliding_window" not in raw or not flag(raw, "use_sliding_window", default=True):
        if family.sliding == "but every nth":
            raise ValueError("config.json: this architecture needs a sliding_window")
        return None
    if family.sliding == "never":
        raise ValueError(
            "config.json: this architecture has no sliding window; sliding_window must be null"
        )
    return integer(raw, "sliding_window")


def _sliding_layers(raw: Mapping[str, Any], family: Family, rotated: list[bool]) -> list[bool]:
    match family.sliding:
        case "without rope":
            return [not rope for rope in rotated]
        case "from max_window_layers":
            first = integer(raw, "max_window_layers", at_least=0)
            return [layer >= first for layer in range(len(rotated))]
        case "but every nth":
            every = family.full_every
            if "sliding_window_pattern" in family.options:
                every = integer(raw, "sliding_window_pattern", every)
            return [(layer + 1) % every != 0 for layer in range(len(rotated))]
        case _:
            return [True] * len(rotated)


def _listed_as_sliding(raw: Mapping[str, Any], num_layers: int) -> list[bool]:
    sliding = {"full_attention": False, "sliding_attention": True}
    layer_types = entries(raw, "layer_types", num_layers)
    if len(layer_types) > num_layers:
        raise ValueError(
            f"config.json: layer_types has {len(layer_types)} entries for {num_layers} layers"
        )
    for layer_type in layer_types:
        if not isinstance(layer_type, str) or layer_type not in sliding:
            raise ValueError(f"config.json: layer type {layer_type!r} is not supported")
    return [sliding[layer_type] for layer_type in layer_types]
