"""Reading and validating a checkpoint's config.json. Nothing here imports torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minimal_vllm.formats.gguf_file import GgufFile, find_gguf, read_gguf
from minimal_vllm.model.experts_config import ExpertsConfig, read_experts
from minimal_vllm.model.gguf_config import ROPE_FACTORS, config_json
from minimal_vllm.model.json_fields import flag, integer, positive, token_ids
from minimal_vllm.model.layer_config import LayerConfig, read_layers
from minimal_vllm.model.multimodal import text_config
from minimal_vllm.model.quantization_config import Mxfp4, Quantization, quantization_of
from minimal_vllm.model.registry import (
    COMMON_DEFAULTS,
    Family,
    NormNames,
    QkNorm,
    find_family,
)
from minimal_vllm.model.rope_config import (
    FrequencyFactors,
    LinearScaling,
    LongRopeScaling,
    RopeConfig,
    YarnScaling,
    read_ropes,
)
from minimal_vllm.model.supported import (
    DTYPE_BYTES,
    Activation,
    read_activation,
    read_dtype,
    refuse_unsupported,
)

# Null means the same as an absent key here. For other keys, such as sliding_window, it doesn't.
_DEFAULT_IF_NULL = frozenset({"rope_theta", "rms_norm_eps", "use_sliding_window"})


@dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of a decoder, and the checkpoint's dtype and stop tokens."""

    architecture: str
    part_of: str | None
    """Architecture of several modalities that this is the text model of. None: of none."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    fused: frozenset[str]
    """Projections that are one tensor in the checkpoint; see ``Family``."""
    qk_norm: QkNorm | None
    """Norms of queries and keys before the rotation."""
    attention_scale: float
    """Factor of attention scores."""
    attention_softcap: float | None
    """Bound of attention scores; see ``AttentionOptions``."""
    attention_sinks: bool
    """Whether each query head has a sink; see ``AttentionOptions``."""
    norms: NormNames
    exact_norms: bool
    """Whether norms multiply by their weights in float32."""
    norm_offset: float
    """Number to add to the norms' weights in a safetensors checkpoint."""
    activation: Activation
    embedding_scale: float
    """Factor of the embeddings."""
    residual_scale: float
    """Factor of what each sub-layer adds to the residual stream."""
    logits_divisor: float
    """Number that logits are divided by."""
    logits_softcap: float | None
    """Bound of the logits, applied like ``attention_softcap``. None: no bound."""
    rope: RopeConfig
    local_rope: RopeConfig | None
    """Rotation in layers with a sliding window. None: ``rope``."""
    layers: tuple[LayerConfig, ...]
    experts: ExpertsConfig | None
    """Settings of the layers that have a mixture of experts. None: no layer has."""
    max_position_embeddings: int
    max_positions: int
    """Maximum length of a sequence: the trained length, extended by linear or YaRN scaling."""
    dtype: str
    """Dtype that the checkpoint asks to run in: a key of ``DTYPE_BYTES``."""
    eos_token_ids: tuple[int, ...]
    quantization: Quantization | None = None
    """Quantization of the projections' weights. None: they are not quantized."""
    ranks: int = 1
    """Number of ranks that compute the model together, of which this is one's part."""

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Path, overrides: Mapping[str, Any] | None = None
    ) -> "ModelConfig":
        """Read the ``config.json`` in a checkpoint's folder, or the metadata of a GGUF file.

        Args:
            checkpoint: a folder, or a GGUF file.
            overrides: entries that replace those of the ``config.json``.

        Raises:
            ValueError: the file is missing, damaged or not a JSON object, or ``from_dict`` or
                ``from_gguf`` rejects it.
        """
        gguf = find_gguf(checkpoint)
        if gguf is not None:
            return cls.from_gguf(read_gguf(gguf), overrides)
        return cls.from_dict(_overridden(read_json(checkpoint / "config.json"), overrides or {}))

    @classmethod
    def from_gguf(cls, file: GgufFile, overrides: Mapping[str, Any] | None = None) -> "ModelConfig":
        """Read the metadata of a GGUF file; ``overrides`` are keys and values of a config.json.

        Raises:
            ValueError: ``config_json`` or ``from_dict`` rejects it. The message names the file.
        """
        raw = {**config_json(file), **(overrides or {})}
        try:
            # llama.cpp has added the offset to the norms' weights.
            config = replace(cls.from_dict(raw), norm_offset=0.0)
        except ValueError as error:
            complaint = str(error).removeprefix("config.json: ")
            raise ValueError(f"{file.path}: invalid metadata: {complaint}") from error
        if ROPE_FACTORS not in file.tensors:
            return config
        factors = tuple(file.rows(ROPE_FACTORS)[0].tolist())
        if len(factors) != config.head_dim // 2 or not all(factor > 0 for factor in factors):
            raise ValueError(
                f"{file.path}: {ROPE_FACTORS} must hold {config.head_dim // 2} positive numbers, "
                "one for each pair of a head's dimensions"
            )
        return replace(config, rope=replace(config.rope, scaling=FrequencyFactors(factors)))

    @classmethod
    def from_dict(cls, config_json: Mapping[str, Any]) -> "ModelConfig":
        """Read a config.json written by transformers v4 or v5.

        Of a model of several modalities, the text model is read.

        Raises:
            ValueError: a key is missing or has an invalid value, or asks for a feature that would
                change the output and isn't supported.
        """
        config_json, part_of = text_config(config_json)
        architecture, family = find_family(
            config_json.get("architectures"), config_json.get("model_type")
        )
        raw = _with_defaults(config_json, family)
        refuse_unsupported(raw, family)
        hidden_size = integer(raw, "hidden_size")
        num_heads = integer(raw, "num_attention_heads")
        head_dim = integer(raw, "head_dim", hidden_size // num_heads)
        qkv_bias, o_bias = _attention_biases(raw, family)
        rope, local_rope = read_ropes(raw, family)
        config = cls(
            architecture=architecture,
            part_of=part_of,
            vocab_size=integer(raw, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=integer(raw, "intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=integer(raw, "num_key_value_heads", num_heads),
            head_dim=head_dim,
            rms_norm_eps=positive(raw, "rms_norm_eps"),
            tie_word_embeddings=flag(raw, "tie_word_embeddings"),
            qkv_bias=qkv_bias,
            o_bias=o_bias,
            mlp_bias=family.mlp_bias == "configured" and flag(raw, "mlp_bias"),
            fused=family.fused,
            qk_norm=family.qk_norm,
            attention_scale=_attention_scale(raw, family, head_dim),
            attention_softcap=_option(raw, family, "attn_logit_softcapping"),
            attention_sinks=family.attention_sinks,
            norms=family.norms,
            exact_norms=family.exact_norms,
            norm_offset=family.norm_offset,
            activation=read_activation(raw, family.activation_key),
            embedding_scale=_embedding_scale(raw, family),
            residual_scale=_option(raw, family, "residual_multiplier") or 1.0,
            logits_divisor=_option(raw, family, "logits_scaling") or 1.0,
            logits_softcap=_option(raw, family, "final_logit_softcapping"),
            max_position_embeddings=integer(raw, "max_position_embeddings"),
            max_positions=_max_positions(raw, rope, family),
            rope=rope,
            local_rope=local_rope,
            layers=read_layers(raw, family, integer(raw, "num_hidden_layers")),
            experts=read_experts(raw, family.experts) if family.experts else None,
            dtype=read_dtype(raw),
            eos_token_ids=token_ids(raw.get("eos_token_id")),
            quantization=quantization_of(raw),
        )
        _check(config, head_dim_given="head_dim" in raw)
        return config

    def rope_of(self, layer: LayerConfig) -> RopeConfig | None:
        """Return the rotation in a layer, or None if it has none."""
        if not layer.rope:
            return None
        return self.local_rope if layer.window and self.local_rope else self.rope

    @property
    def num_layers(self) -> int:
        """Number of decoder layers, and therefore of KV caches."""
        return len(self.layers)

    @property
    def has_plain_attention(self) -> bool:
        """Whether all layers' attention is an ordinary softmax; see ``AttentionOptions``."""
        return self.attention_softcap is None and not self.attention_sinks

    @property
    def num_sparse_layers(self) -> int:
        """Number of layers with a mixture of experts."""
        return sum(layer.is_sparse for layer in self.layers)

    @property
    def vocab_rows(self) -> int:
        """Number of tokens in the embedding and in the projection to the logits."""
        return -(-self.vocab_size // self.ranks)

    @property
    def num_parameters(self) -> int:
        """Number of parameters; tied embeddings count once."""
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * q_size + 2 * kv_size)
        attention += self.qkv_bias * (q_size + 2 * kv_size) + self.o_bias * self.hidden_size
        qk_norms = {"per head": 2 * self.head_dim, "all heads": q_size + kv_size}
        attention += qk_norms[self.qk_norm] if self.qk_norm else 0
        attention += self.attention_sinks * self.num_heads
        mlp = 3 * self.hidden_size * self.intermediate_size
        mlp += self.mlp_bias * (2 * self.intermediate_size + self.hidden_size)
        mlps = (self.num_layers - self.num_sparse_layers) * mlp
        if self.experts:
            mlps += self.num_sparse_layers * self.experts.num_parameters(self.hidden_size)
        embeddings = (1 if self.tie_word_embeddings else 2) * self.vocab_rows * self.hidden_size
        norms = self.num_layers * self.norms.count + 1
        return self.num_layers * attention + mlps + embeddings + norms * self.hidden_size

    def expected_parameters(self, num_tokens: int) -> float:
        """Return ``num_parameters`` without the experts that are expected to have no token.

        For one token, these are the parameters that it is computed with, called active.
        """
        if self.experts is None:
            return self.num_parameters
        idle = self.experts.count - self.experts.expected_hit(num_tokens)
        expert = self.experts.expert_parameters(self.hidden_size)
        return self.num_parameters - self.num_sparse_layers * idle * expert

    @property
    def active_inner_sizes(self) -> int:
        """Sum over all layers of the intermediate size that a token is computed with."""
        sparse = self.num_sparse_layers
        experts = self.experts.per_token * self.experts.inner_size if self.experts else 0
        return (self.num_layers - sparse) * self.intermediate_size + sparse * experts

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Return the bytes that one token's keys and values take over all layers, in ``dtype``."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPE_BYTES[dtype]


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that must hold a JSON object.

    Raises:
        ValueError: the file can't be read, or doesn't hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def _option(raw: Mapping[str, Any], family: Family, key: str) -> float | None:
    """Return the number under a key that only some families read, or None if it is missing."""
    return positive(raw, key) if key in family.options and key in raw else None


def _attention_scale(raw: Mapping[str, Any], family: Family, head_dim: int) -> float:
    multiplier = _option(raw, family, "attention_multiplier")
    size = _option(raw, family, "query_pre_attn_scalar") or head_dim
    return float(size**-0.5) if multiplier is None else multiplier


def _embedding_scale(raw: Mapping[str, Any], family: Family) -> float:
    if family.scales_embedding:
        return float(integer(raw, "hidden_size") ** 0.5)
    return _option(raw, family, "embedding_multiplier") or 1.0


def _max_positions(raw: Mapping[str, Any], rope: RopeConfig, family: Family) -> int:
    trained = integer(raw, "max_position_embeddings")
    match rope.scaling:
        # Where layers have different rotations, max_position_embeddings includes the factor.
        case LinearScaling(factor=factor) if family.local_theta is None:
            return int(trained * factor)
        case YarnScaling(factor=factor, original_max_position_embeddings=original):
            return int(original * factor)
        case LongRopeScaling(short_factor=short, long_factor=long) if short != long:
            return min(trained, rope.scaling.original_max_position_embeddings)
    return trained


def _attention_biases(raw: Mapping[str, Any], family: Family) -> tuple[bool, bool]:
    """Return whether the projections to q, k and v have biases, and the one after attention."""
    given = family.attention_bias.startswith("configured") and flag(raw, "attention_bias")
    return given or family.attention_bias == "qkv", given and family.attention_bias == "configured"


def _with_defaults(config_json: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Return the values of a config.json and the family's defaults, without nulls."""
    given = {
        key: value
        for key, value in config_json.items()
        if value is not None or key not in _DEFAULT_IF_NULL
    }
    everything = {**COMMON_DEFAULTS, **family.defaults, **given}
    return {key: value for key, value in everything.items() if value is not None}


def _overridden(raw: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json with some entries replaced, also in a nested ``text_config``."""
    nested = overrides.get("text_config")
    others = {key: value for key, value in overrides.items() if key != "text_config"}
    if isinstance(nested, dict) and isinstance(raw.get("text_config"), dict):
        raw = {**raw, "text_config": {**raw["text_config"], **nested}}
    elif nested is not None:
        others["text_config"] = nested
    if isinstance(raw.get("text_config"), dict):
        raw = {**raw, "text_config": {**raw["text_config"], **others}}
    return {**raw, **others}


def _check(config: ModelConfig, *, head_dim_given: bool) -> None:
    _check_quantization(config)
    _check_heads(config, head_dim_given=head_dim_given)
    _check_rotation(config)


def _check_quantization(config: ModelConfig) -> None:
    is_mxfp4 = config.quantization and isinstance(config.quantization.format, Mxfp4)
    if is_mxfp4 and not (config.experts and config.experts.interleaved):
        raise ValueError(
            "config.json: quantization_config: quant_method = 'mxfp4' is supported only for the "
            f"experts of GptOssForCausalLM, not for {config.architecture}"
        )


def _check_heads(config: ModelConfig, *, head_dim_given: bool) -> None:
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % kv_heads:
        raise ValueError(
            f"config.json: num_attention_heads ({heads}) must be a multiple of "
            f"num_key_value_heads ({kv_heads})"
        )
    if config.hidden_size % heads and not head_dim_given:
        raise ValueError(
            f"config.json: hidden_size ({config.hidden_size}) must be a multiple of "
            f"num_attention_heads ({heads}), or head_dim must be given"
        )
    if config.head_dim % 2:
        raise ValueError(
            f"config.json: head_dim is {config.head_dim}, but must be even: rotary embedding "
            "rotates pairs of dimensions"
        )


def _check_rotation(config: ModelConfig) -> None:
    rotary_dim = config.rope.rotary_dim(config.head_dim)
    if rotary_dim % 2 or not rotary_dim:
        raise ValueError(
            f"config.json: partial_rotary_factor rotates {rotary_dim} of a head's "
            f"{config.head_dim} dimensions, but their number must be even and positive"
        )
    scaling = config.rope.scaling
    if isinstance(scaling, LongRopeScaling):
        for name in ("short_factor", "long_factor"):
            found = len(getattr(scaling, name))
            if found != rotary_dim // 2:
                raise ValueError(
                    f"config.json: rope parameter {name!r} has {found} numbers, but must have "
                    f"{rotary_dim // 2}, one for each pair of rotated dimensions"
                )
