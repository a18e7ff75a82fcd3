"""Reading and validating a checkpoint's config.json. Nothing here imports torch."""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from minimal_vllm.formats.gguf_file import GgufFile, find_gguf, read_gguf
from minimal_vllm.model.gguf_config import ROPE_FACTORS, config_json
from minimal_vllm.model.json_fields import entries, flag, integer, positive
from minimal_vllm.model.registry import COMMON_DEFAULTS, Family, NormNames, find_family
from minimal_vllm.model.rope_config import (
    FrequencyFactors,
    LinearScaling,
    RopeConfig,
    YarnScaling,
)


@dataclass(frozen=True)
class LayerConfig:
    """Attention settings that may differ from layer to layer."""

    window: int | None
    """Sliding window: position i attends to positions i - window + 1 to i. None: to all up to i."""
    rope: bool
    """Whether queries and keys are rotated by their positions."""


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
        LayerConfig(window if slides else None, rope)
        for slides, rope in zip(sliding, rotated, strict=True)
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


Activation = Literal["silu", "gelu_tanh"]

_ACTIVATIONS: dict[object, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
"""Supported activations, by their names in config.json."""

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Supported dtypes of weights and activations -> bytes per number."""

_DTYPE_NAMES = {
    **{name: name for name in DTYPE_BYTES},
    "float": "float32",
    "fp32": "float32",
    "bf16": "bfloat16",
    "half": "float16",
    "fp16": "float16",
    "auto": "float32",  # the same as no dtype
}
"""Dtypes, by their names in config.json."""

# Each key would change the model's output, so it must be absent, null or one of these values.
_ONLY_SUPPORTED_AS: dict[str, tuple[object, ...]] = {
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "quantization_config": ({},),
    "compression_config": ({},),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    # transformers writes 1.0 for a model that doesn't use these.
    "logit_scale": (1.0,),
    "logits_scaling": (1.0,),
    "attention_multiplier": (1.0,),
    "embedding_multiplier": (1.0,),
    "residual_multiplier": (1.0,),
    "attention_chunk_size": (),
    "dual_chunk_attention_config": ({},),
    "clip_qkv": (),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "use_logn_attn": (False,),
    "use_dynamic_ntk": (False,),
    "attn_temperature_tuning": (False,),
}

# Null means the same as an absent key here. For other keys, such as sliding_window, it doesn't.
_DEFAULT_IF_NULL = frozenset({"rope_theta", "rms_norm_eps", "use_sliding_window"})


@dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of a decoder, and the checkpoint's dtype and stop tokens."""

    architecture: str
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
    qk_norm: bool
    attention_softcap: float | None
    """Bound of attention scores; see ``AttentionOptions``."""
    attention_sinks: bool
    """Whether each query head has a sink; see ``AttentionOptions``."""
    norms: NormNames
    activation: Activation
    rope: RopeConfig
    layers: tuple[LayerConfig, ...]
    max_position_embeddings: int
    dtype: str
    """Dtype that the checkpoint asks to run in: a key of ``DTYPE_BYTES``."""
    eos_token_ids: tuple[int, ...]

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
        return cls.from_dict({**read_json(checkpoint / "config.json"), **(overrides or {})})

    @classmethod
    def from_gguf(cls, file: GgufFile, overrides: Mapping[str, Any] | None = None) -> "ModelConfig":
        """Read the metadata of a GGUF file; ``overrides`` are keys and values of a config.json.

        Raises:
            ValueError: ``config_json`` or ``from_dict`` rejects it. The message names the file.
        """
        raw = {**config_json(file), **(overrides or {})}
        try:
            config = cls.from_dict(raw)
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

        Raises:
            ValueError: a key is missing or has an invalid value, or asks for a feature that would
                change the output and isn't supported.
        """
        architecture, family = find_family(
            config_json.get("architectures"), config_json.get("model_type")
        )
        given = {
            key: value
            for key, value in config_json.items()
            if value is not None or key not in _DEFAULT_IF_NULL
        }
        everything = {**COMMON_DEFAULTS, **family.defaults, **given}
        raw = {key: value for key, value in everything.items() if value is not None}
        _refuse_unsupported(raw)
        hidden_size = integer(raw, "hidden_size")
        num_heads = integer(raw, "num_attention_heads")
        attention_bias = family.attention_bias == "configured" and flag(raw, "attention_bias")
        config = cls(
            architecture=architecture,
            vocab_size=integer(raw, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=integer(raw, "intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=integer(raw, "num_key_value_heads", num_heads),
            head_dim=integer(raw, "head_dim", hidden_size // num_heads),
            rms_norm_eps=positive(raw, "rms_norm_eps"),
            tie_word_embeddings=flag(raw, "tie_word_embeddings"),
            qkv_bias=attention_bias or family.attention_bias == "qkv",
            o_bias=attention_bias,
            mlp_bias=family.mlp_bias == "configured" and flag(raw, "mlp_bias"),
            qk_norm=family.qk_norm,
            attention_softcap=None,
            attention_sinks=family.attention_sinks,
            norms=family.norms,
            activation=_activation(raw),
            max_position_embeddings=integer(raw, "max_position_embeddings"),
            rope=RopeConfig.from_dict(raw),
            layers=read_layers(raw, family, integer(raw, "num_hidden_layers")),
            dtype=_dtype(raw),
            eos_token_ids=token_ids(raw.get("eos_token_id")),
        )
        _check_heads(config, head_dim_given="head_dim" in raw)
        return config

    @property
    def num_layers(self) -> int:
        """Number of decoder layers, and therefore of KV caches."""
        return len(self.layers)

    @property
    def has_plain_attention(self) -> bool:
        """Whether all layers' attention is an ordinary softmax; see ``AttentionOptions``."""
        return self.attention_softcap is None and not self.attention_sinks

    @property
    def max_positions(self) -> int:
        """Maximum length of a sequence: the trained length, extended by linear or YaRN scaling."""
        match self.rope.scaling:
            case LinearScaling(factor=factor):
                return int(self.max_position_embeddings * factor)
            case YarnScaling(factor=factor, original_max_position_embeddings=original):
                return int(original * factor)
        return self.max_position_embeddings

    @property
    def num_parameters(self) -> int:
        """Number of parameters; tied embeddings count once."""
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * q_size + 2 * kv_size)
        attention += self.qkv_bias * (q_size + 2 * kv_size) + self.o_bias * self.hidden_size
        attention += self.qk_norm * 2 * self.head_dim + self.attention_sinks * self.num_heads
        mlp = 3 * self.hidden_size * self.intermediate_size
        mlp += self.mlp_bias * (2 * self.intermediate_size + self.hidden_size)
        embeddings = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        norms = self.num_layers * self.norms.count + 1
        return self.num_layers * (attention + mlp) + embeddings + norms * self.hidden_size

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
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def token_ids(value: object) -> tuple[int, ...]:
    """Return the token ids in a JSON value: one id, a list of ids, or None for no ids.

    Raises:
        ValueError: the value is anything else.
    """
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise ValueError(f"eos_token_id must be a token id, a list of them or null, not {value!r}")
    return tuple(ids)


def _dtype(raw: Mapping[str, Any]) -> str:
    dtype = str(raw.get("dtype", raw.get("torch_dtype", "float32"))).removeprefix("torch.")
    if dtype not in _DTYPE_NAMES:
        raise ValueError(
            f"config.json: dtype is {dtype!r}, but must be one of {', '.join(DTYPE_BYTES)}"
        )
    return _DTYPE_NAMES[dtype]


def _activation(raw: Mapping[str, Any]) -> Activation:
    name = raw.get("hidden_act", "silu")
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"config.json: hidden_act = {name!r} is not supported; only "
            f"{', '.join(map(repr, _ACTIVATIONS))} are"
        )
    return _ACTIVATIONS[name]


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    for key, supported in _ONLY_SUPPORTED_AS.items():
        if key in raw and raw[key] not in supported:
            has_value = supported not in ((), ({},))
            instead = f"only {supported[0]!r} is" if has_value else "choose a checkpoint without it"
            found = reprlib.repr(raw[key])  # shortened: a quantization_config is long
            raise ValueError(f"config.json: {key} = {found} is not supported; {instead}")


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
