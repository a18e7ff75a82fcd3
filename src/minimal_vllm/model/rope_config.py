"""The rotary embedding's settings in config.json, as transformers v4 and v5 write them."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from minimal_vllm.model.json_fields import flag, integer, is_number, positive
from minimal_vllm.model.registry import Family, Pairs


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
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024, https://arxiv.org/abs/2402.13753): a factor for each pair.

    Sequences longer than ``original_max_position_embeddings`` have other factors. As cached keys
    would become wrong when a sequence grows beyond this length, longer ones are not supported,
    unless both lists are the same.
    """

    short_factor: tuple[float, ...]
    """Divisors of the frequencies, one per pair."""
    long_factor: tuple[float, ...]
    """Divisors for longer sequences."""
    original_max_position_embeddings: int
    factor: float
    """Factor by which the context was extended."""
    attention_factor: float | None = None
    """Factor of cosines and sines. Default: computed from ``factor`` by the paper's formula."""


@dataclass(frozen=True)
class FrequencyFactors:
    """Scaling by a separate factor for each pair, which divides its frequency.

    No config.json asks for it. GGUF files store these factors, which llama.cpp computed from
    ``Llama3Scaling``, in its place (``rope_freqs.weight``, https://github.com/ggml-org/llama.cpp).
    """

    factors: tuple[float, ...]
    """``head_dim / 2`` positive numbers, one per pair."""


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling | FrequencyFactors

SCALINGS: dict[str, type[RopeScaling] | None] = {
    "default": None,
    "linear": LinearScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
    "longrope": LongRopeScaling,
}
"""``rope_type`` in config.json -> its parameters."""

_HAVE_ORIGINAL_LENGTH = ("llama3", "yarn", "longrope")
"""Values of ``rope_type`` that need ``original_max_position_embeddings``."""

_MAY_BE_ZERO = ("mscale", "mscale_all_dim")
"""Parameters that need not be positive: zero stands for the default."""

_LAYER_TYPES = ("full_attention", "sliding_attention")
"""Keys of ``rope_parameters`` in architectures whose layers with a window have their own."""


@dataclass(frozen=True)
class QueryGrowth:
    """Factor of the queries that grows with their positions.

    A query at position p is multiplied by ``1 + beta * ln(1 + floor(p / original_length))``, so
    that attention stays sharp in long contexts. Source: Llama 4; used by Ministral 3.
    """

    beta: float
    original_length: int


@dataclass(frozen=True)
class RopeConfig:
    """Rotation of queries and keys by their positions."""

    theta: float
    """Base of the frequencies."""
    scaling: RopeScaling | None = None
    """Scaling of the frequencies for longer contexts. None: none."""
    share: float = 1.0
    """Share of each head's dimensions that is rotated: the first ones."""
    pairs: Pairs = "halves"
    """Dimensions that are rotated together."""
    query_growth: QueryGrowth | None = None
    """Factor of the rotated queries. None: 1."""

    def rotary_dim(self, head_dim: int) -> int:
        """Return the number of dimensions of a head that are rotated."""
        return int(head_dim * self.share)


def read_ropes(raw: Mapping[str, Any], family: Family) -> tuple[RopeConfig, RopeConfig | None]:
    """Read ``rope_parameters`` (transformers v5), or ``rope_theta`` and ``rope_scaling`` (v4).

    Args:
        raw: the whole config.json with the family's defaults filled in and null values removed.
        family: the architecture's rules.

    Returns:
        The rotation of most layers; and that of layers with a window, or None if it is the same.

    Raises:
        ValueError: the type is unsupported, or a parameter is missing or unknown.
    """
    scaling, parameters = _object(raw, "rope_scaling"), _object(raw, "rope_parameters")
    if family.local_theta is None:
        return _read_rope(scaling or parameters, raw, family, raw.get("rope_theta")), None
    for key in parameters:
        if key not in _LAYER_TYPES:
            raise ValueError(
                f"config.json: rope_parameters has {key!r}, but only {' and '.join(_LAYER_TYPES)}: "
                "this architecture's layers with a window have parameters of their own"
            )
    full, local = (_object(parameters, layer_type) for layer_type in _LAYER_TYPES)
    local_theta = family.local_theta
    if "rope_local_base_freq" in family.options:
        local_theta = raw.get("rope_local_base_freq", local_theta)
    return (
        _read_rope({**full, **scaling}, raw, family, raw.get("rope_theta")),
        _read_rope(local, raw, family, local_theta),
    )


def _object(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the object under ``key`` without null values; empty if it is missing."""
    found = raw.get(key) or {}
    if not isinstance(found, dict):
        raise ValueError(f"config.json: the rope parameters must be an object, not {found!r}")
    return {name: value for name, value in found.items() if value is not None}


def _read_rope(
    given: Mapping[str, Any], raw: Mapping[str, Any], family: Family, theta: object
) -> RopeConfig:
    """Read one rotation from its parameters; ``theta`` is the default of ``rope_theta``."""
    parameters = {"rope_theta": theta, **given}
    base = positive(parameters, "rope_theta")
    del parameters["rope_theta"]
    rope_type = str(parameters.pop("rope_type", parameters.pop("type", "default")))
    parameters.pop("type", None)
    rope_type = family.rope_types.get(rope_type, rope_type)
    share = _rotated_share(parameters, raw, family)
    if rope_type in _HAVE_ORIGINAL_LENGTH:
        key = "original_max_position_embeddings"
        trained_length = parameters.get(key, integer(raw, "max_position_embeddings"))
        parameters[key] = raw.get(key, trained_length)
        if positive(parameters, key) <= 1:
            raise ValueError(f"config.json: {key} is {parameters[key]}, but must be more than 1")
    growth = None
    if "llama_4_scaling_beta" in family.options and "llama_4_scaling_beta" in parameters:
        beta = positive(parameters, "llama_4_scaling_beta")
        length = int(positive(parameters, "original_max_position_embeddings"))
        growth = QueryGrowth(beta, length)
        del parameters["llama_4_scaling_beta"]
    parameters = {
        key: value
        for key, value in parameters.items()
        if not _changes_nothing(rope_type, key, value)
    }
    if rope_type == "longrope" and "factor" not in parameters:
        original = positive(parameters, "original_max_position_embeddings")
        parameters["factor"] = integer(raw, "max_position_embeddings") / original
    return RopeConfig(base, _scaling(rope_type, parameters), share, family.rotary_pairs, growth)


def _rotated_share(parameters: dict[str, Any], raw: Mapping[str, Any], family: Family) -> float:
    """Remove ``partial_rotary_factor`` from the parameters, and return it."""
    found = {"partial_rotary_factor": raw.get("partial_rotary_factor", 1.0)}
    if "partial_rotary_factor" in parameters:
        found["partial_rotary_factor"] = parameters.pop("partial_rotary_factor")
    share = positive(found, "partial_rotary_factor")
    if share > 1 or (share != 1 and not family.partial_rotary):
        raise ValueError(
            f"config.json: partial_rotary_factor is {share}, but only fully rotated heads (1.0) "
            "are supported for this architecture"
        )
    return share


def _changes_nothing(rope_type: str, key: str, value: object) -> bool:
    """Return whether a parameter of published checkpoints has no effect with this value."""
    match key:
        case "finetuned" | "max_position_embeddings":  # notes on how the model was made
            return True
        case "attn_factor" | "extrapolation_factor":
            return value == 1
        case "factor":
            return rope_type == "default" and value == 1
        case "original_max_position_embeddings":
            return rope_type in ("default", "linear")
    return False


def _scaling(rope_type: str, parameters: Mapping[str, Any]) -> RopeScaling | None:
    if rope_type == "dynamic":
        raise ValueError(
            "config.json: rope type 'dynamic' is not supported: its rotation depends on the "
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
        if name in ("short_factor", "long_factor"):
            parameters = {**parameters, name: _factors(parameters, name)}
        elif name == "truncate":
            flag(parameters, name, default=True)
        elif name in _MAY_BE_ZERO:
            if not is_number(parameters.get(name, 0)):
                raise ValueError(f"config.json: rope parameter {name!r} must be a number")
        elif field.default is MISSING or name in parameters:
            positive(parameters, name)
    return scaling(**parameters) if scaling else None


def _factors(parameters: Mapping[str, Any], name: str) -> tuple[float, ...]:
    factors = parameters.get(name)
    are_numbers = isinstance(factors, list) and all(
        is_number(each) and each > 0 for each in factors
    )
    if not isinstance(factors, list) or not are_numbers:
        raise ValueError(f"config.json: rope parameter {name!r} must be a list of positive numbers")
    return tuple(map(float, factors))
