"""The values of a config.json that are supported, and those that are refused by name."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from minimal_vllm.model.registry import Family

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class ClampedGate:
    """Gate of gpt-oss: ``gate * sigmoid(slope * gate) * (up + 1)``, of clamped numbers.

    Source: https://github.com/openai/gpt-oss, ``swiglu``.
    """

    limit: float
    """Upper bound of ``gate``, and bound of ``up`` in both directions."""
    slope: float


Gate = Activation | ClampedGate
"""Way to combine gate and up: ``activation(gate) * up``, or a clamped gate."""

_ACTIVATIONS: dict[str, Activation] = {
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

# Each key would change the model's output, so it must be absent, null or one of these values. An
# architecture that reads the key (``Family.options``) checks the value itself.
_ONLY_SUPPORTED_AS: dict[str, tuple[object, ...]] = {
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "rope_local_base_freq": (),
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
    "swiglu_alpha": (),
    "swiglu_limit": (),
}


def read_dtype(raw: Mapping[str, Any]) -> str:
    """Return the dtype that a config.json asks for, a key of ``DTYPE_BYTES``.

    Raises:
        ValueError: it is not supported.
    """
    dtype = str(raw.get("dtype", raw.get("torch_dtype", "float32"))).removeprefix("torch.")
    if dtype not in _DTYPE_NAMES:
        raise ValueError(
            f"config.json: dtype is {dtype!r}, but must be one of {', '.join(DTYPE_BYTES)}"
        )
    return _DTYPE_NAMES[dtype]


def read_activation(raw: Mapping[str, Any], key: str) -> Activation:
    """Return the activation that a config.json has under ``key``.

    Raises:
        ValueError: it is not supported.
    """
    name = raw.get(key, "silu")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ValueError(
            f"config.json: {key} = {name!r} is not supported; only "
            f"{', '.join(map(repr, _ACTIVATIONS))} are"
        )
    return _ACTIVATIONS[name]


def refuse_unsupported(raw: Mapping[str, Any], family: Family) -> None:
    """Check that a config.json asks for nothing that would change the output and isn't supported.

    Raises:
        ValueError: it does. The message names the key.
    """
    for key, supported in _ONLY_SUPPORTED_AS.items():
        if key in family.options:
            continue
        if key in raw and raw[key] not in supported:
            has_value = supported not in ((), ({},))
            instead = f"only {supported[0]!r} is" if has_value else "choose a checkpoint without it"
            found = reprlib.repr(raw[key])  # shortened: a quantization_config is long
            raise ValueError(f"config.json: {key} = {found} is not supported; {instead}")
