"""Checkpoints of several modalities, of which only the text model is read and loaded."""

from collections.abc import Mapping
from typing import Any

from minimal_vllm.model.registry import MULTIMODAL

_OUTER_KEYS = ("tie_word_embeddings", "dtype", "torch_dtype", "eos_token_id", "quantization_config")
"""Keys beside ``text_config`` that concern the text model, and that override its own."""

_TEXT_PREFIXES = {"model.language_model.": "model.", "language_model.": ""}
"""Beginnings of the text model's tensor names -> what a text-only checkpoint has in their place.

transformers v5 writes the first, v4 the second.
"""
_OTHER_MODALITIES = (
    "audio_tower",
    "embed_audio",
    "embed_vision",
    "multi_modal_projector",
    "patch_merger",
    "vision_encoder",
    "vision_language_adapter",
    "vision_tower",
)
"""Modules of other modalities."""


def text_config(config_json: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
    """Return the text model's config.json, and the architecture that it is a part of.

    Args:
        config_json: a whole config.json. If its architecture isn't in ``MULTIMODAL``, it is
            returned as it is, with None.

    Raises:
        ValueError: the config.json has no ``text_config``.
    """
    match config_json.get("architectures"):
        case [str(architecture)] if architecture in MULTIMODAL:
            pass
        case _:
            return config_json, None
    nested = config_json.get("text_config")
    if not isinstance(nested, dict):
        raise ValueError(
            f"config.json: text_config is {nested!r}, but must be an object that describes the "
            f"text model of {architecture}"
        )
    outer = {key: config_json[key] for key in _OUTER_KEYS if config_json.get(key) is not None}
    model_type = nested.get("model_type") or MULTIMODAL[architecture]
    return {**nested, **outer, "architectures": None, "model_type": model_type}, architecture


def text_tensor_name(name: str) -> str | None:
    """Return a tensor's name in a text-only checkpoint, or None if it isn't of the text model."""
    for prefix, instead in _TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return instead + name.removeprefix(prefix)
    return None if name.removeprefix("model.").startswith(_OTHER_MODALITIES) else name
