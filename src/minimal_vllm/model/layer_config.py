"""Which layers of a model have a sliding window, and which are rotated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minimal_vllm.model.json_fields import entries, flag, integer
from minimal_vllm.model.registry import Family


@dataclass(frozen=True)
class LayerConfig:
    """In what the attention of one layer may differ from that of another."""

    window: int | None
    """Position i sees the positions i - window + 1 to i; None: all up to i."""
    rope: bool
    """Whether queries and keys are rotated by their positions."""


def read_layers(raw: Mapping[str, Any], family: Family, num_layers: int) -> tuple[LayerConfig, ...]:
    """The layers that config.json describes.

    Args:
        raw: config.json with the family's defaults, without its nulls.
        family: decides what config.json leaves open.
        num_layers: how many layers there are.

    Raises:
        ValueError: if config.json contradicts itself or the family.
    """
    rotated = _rotated_layers(raw, family, num_layers)
    window = _window(raw, family)
    sliding = _sliding_layers(raw, family, rotated) if window else [False] * num_layers
    if "layer_types" in raw:
        listed = _listed_as_sliding(raw, num_layers)
        if listed != sliding and (window is None or family.sliding == "always"):
            raise ValueError(
                "config.json: layer_types contradicts sliding_window or use_sliding_window, by "
                f"which {sum(sliding)} of the {num_layers} layers have a sliding window"
            )
        sliding = listed
    return tuple(
        LayerConfig(window if slides else None, rope)
        for slides, rope in zip(sliding, rotated, strict=True)
    )


def _rotated_layers(raw: Mapping[str, Any], family: Family, num_layers: int) -> list[bool]:
    if "no_rope_layers" in raw:  # despite its name, 1 stands for a layer *with* rope
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
        return None
    if family.sliding == "never":
        raise ValueError(
            "config.json: this architecture has no sliding window; sliding_window must be null"
        )
    return integer(raw, "sliding_window")


def _sliding_layers(raw: Mapping[str, Any], family: Family, rotated: list[bool]) -> list[bool]:
    if family.sliding == "without rope":
        return [not rope for rope in rotated]
    from_some_layer_on = family.sliding == "from max_window_layers"
    first = integer(raw, "max_window_layers", at_least=0) if from_some_layer_on else 0
    return [layer >= first for layer in range(len(rotated))]


def _listed_as_sliding(raw: Mapping[str, Any], num_layers: int) -> list[bool]:
    sliding = {"full_attention": False, "sliding_attention": True}
    layer_types = entries(raw, "layer_types", num_layers)
    if len(layer_types) > num_layers:
        raise ValueError(
            f"config.json: layer_types has {len(layer_types)} entries for {num_layers} layers"
        )
    for layer_type in layer_types:
        if layer_type not in sliding:
            raise ValueError(f"config.json: layer type {layer_type!r} is not supported")
    return [sliding[layer_type] for layer_type in layer_types]
