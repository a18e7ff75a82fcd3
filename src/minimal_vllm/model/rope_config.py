"""The rotary embedding's settings in config.json, as transformers v4 and v5 write them."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from minimal_vllm.model.json_fields import positive


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: positions are divided by ``factor``.

    Source: Chen et al. 2023, https://arxiv.org/abs/2306.15595.
    """

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's scaling: low frequencies are divided by ``factor``, high ones are kept.

    Source: https://github.com/meta-llama/llama-models.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN scaling (Peng et al. 2023, https://arxiv.org/abs/2309.00071)."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    """Factor of cosines and sines. Default: computed from ``factor`` by the paper's formula."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    """Whether the bounds of the blend between scaled and kept pairs are rounded to whole pairs."""


@dataclass(frozen=True)
class FrequencyFactors:
    """Scaling by a separate factor for each pair, which divides its frequency.

    No config.json asks for it. GGUF files store these factors, which llama.cpp computed from
    ``Llama3Scaling``, in its place (``rope_freqs.weight``, https://github.com/ggml-org/llama.cpp).
    """

    factors: tuple[float, ...]
    """``head_dim / 2`` positive numbers, one per pair."""


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | FrequencyFactors

SCALINGS: dict[str, type[RopeScaling] | None] = {
    "default": None,
    "linear": LinearScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
}
"""``rope_type`` in config.json -> its parameters."""

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Values of ``rope_type`` whose angles depend on the current length of the sequence."""


@dataclass(frozen=True)
class RopeConfig:
    """Base of the rotary frequencies, and how they are scaled for longer contexts."""

    theta: float
    scaling: RopeScaling | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "RopeConfig":
        """Read ``rope_parameters`` (transformers v5), or ``rope_theta`` and ``rope_scaling`` (v4).

        Args:
            raw: the whole config.json with the family's defaults filled in and null values removed.

        Raises:
            ValueError: the type is unsupported, or a parameter is missing or unknown.
        """
        given = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
        if not isinstance(given, dict):
            raise ValueError(f"config.json: the rope parameters must be an object, not {given!r}")
        given = {key: value for key, value in given.items() if value is not None}
        parameters = {"rope_theta": raw.get("rope_theta"), **given}
        theta = positive(parameters, "rope_theta")
        del parameters["rope_theta"]
        rope_type = str(parameters.pop("rope_type", parameters.pop("type", "default")))
        rotated = parameters.pop("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
        if rotated != 1.0:
            raise ValueError(
                f"config.json: partial_rotary_factor is {rotated}, but only fully rotated heads "
                "(1.0) are supported"
            )
        parameters = {
            key: value
            for key, value in parameters.items()
            if not _changes_nothing(rope_type, key, value)
        }
        if rope_type in ("llama3", "yarn"):
            key = "original_max_position_embeddings"
            trained_length = parameters.get(key, raw["max_position_embeddings"])
            parameters[key] = raw.get(key, trained_length)
        return cls(theta, _scaling(rope_type, parameters))


def _changes_nothing(rope_type: str, key: str, value: object) -> bool:
    """Return whether a parameter of published checkpoints has no effect with this value."""
    match key:
        case "finetuned":  # a note on how the model was made
            return True
        case "attn_factor" | "extrapolation_factor":
            return value == 1
        case "factor":
            return rope_type == "default" and value == 1
        case "original_max_position_embeddings":
            return rope_type in ("default", "linear")
    return False


def _scaling(rope_type: str, parameters: Mapping[str, Any]) -> RopeScaling | None:
    if rope_type in LENGTH_DEPENDENT:
        raise ValueError(
            f"config.json: rope type {rope_type!r} is not supported: its rotation depends on the "
            "current length of the sequence, so cached keys would become wrong as it grows"
        )
    if rope_type not in SCALINGS:
        raise ValueError(
            f"config.json: unknown rope type {rope_type!r}; supported types: {', '.join(SCALINGS)}"
        )
    scaling = SCALINGS[rope_type]
    known = {field.name: field for field in fields(scaling)} if scaling else {}
    unknown = sorted(parameters.keys() - known.keys())
    if unknown:
        raise ValueError(f"config.json: rope type {rope_type!r} has no parameter {unknown[0]!r}")
    for name, field in known.items():
        if field.default is MISSING:
            positive(parameters, name)
        elif not isinstance(parameters.get(name), int | float | None):
            raise ValueError(f"config.json: rope parameter {name!r} must be a number")
    return scaling(**parameters) if scaling else None
