"""The supported architectures, and how each differs from a plain Llama."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class NormNames:
    """Names of a layer's norms in the checkpoint. None: the layer has no such norm."""

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None

    @property
    def count(self) -> int:
        """Number of norms in a layer."""
        return sum(name is not None for name in astuple(self))


@dataclass(frozen=True)
class Family:
    """Rules for reading the config.json of one architecture: what it may choose, what is fixed.

    Where a bias is fixed, config.json is ignored, as in transformers. The loader verifies the
    choice, because it rejects missing and unexpected tensors.
    """

    attention_bias: Literal["configured", "never", "qkv"] = "configured"
    """Biases of the attention projections: as config.json says, none, or on q, k and v only."""
    mlp_bias: Literal["configured", "never"] = "never"
    """Biases of the MLP's projections: as config.json says, or none."""
    qk_norm: bool = False
    """Whether each head's query and key go through an RMSNorm before the rotation."""
    attention_sinks: bool = False
    """Whether each query head has a learned sink; see ``AttentionOptions``."""
    norms: NormNames = NormNames()
    """Norms of a layer."""
    sliding: Literal["never", "always", "from max_window_layers", "without rope"] = "never"
    """Layers with a sliding window, if config.json has no ``layer_types`` that list them."""
    has_nope_layers: bool = False
    """Whether some layers have no rotary embedding (``no_rope_layers``)."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of keys that config.json lacks, in addition to ``COMMON_DEFAULTS``."""


COMMON_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0}
"""Defaults of keys that config.json lacks, for every architecture."""

_QWEN_WINDOW = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}

FAMILIES = {
    "LlamaForCausalLM": Family(mlp_bias="configured"),  # Llama 2 and 3, SmolLM2 and many more
    "MistralForCausalLM": Family(
        attention_bias="never", sliding="always", defaults={"sliding_window": 4096}
    ),
    "Qwen2ForCausalLM": Family(  # Qwen2 and Qwen2.5
        attention_bias="qkv", sliding="from max_window_layers", defaults=_QWEN_WINDOW
    ),
    "Qwen3ForCausalLM": Family(
        qk_norm=True, sliding="from max_window_layers", defaults={"head_dim": 128, **_QWEN_WINDOW}
    ),
    "SmolLM3ForCausalLM": Family(
        mlp_bias="configured",
        sliding="without rope",
        has_nope_layers=True,
        defaults={
            "no_rope_layer_interval": 4,
            "rope_theta": 2_000_000.0,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
    ),
}


_OTHER_NAMES = {"LLaMAForCausalLM": "LlamaForCausalLM"}
"""Names of architectures in old checkpoints -> current names."""

_MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
"""``model_type`` in config.json -> architecture, for files that don't name the architecture."""


def find_family(architectures: object, model_type: object = None) -> tuple[str, Family]:
    """Return the name and the family of a config.json's architecture.

    Args:
        architectures: the file's ``architectures``.
        model_type: the file's ``model_type``, used if it has no ``architectures``.

    Raises:
        ValueError: the file doesn't name exactly one supported architecture.
    """
    match architectures, model_type:
        case [str(named)], _:
            name = _OTHER_NAMES.get(named, named)
        case ((None | []), str()):
            name = _MODEL_TYPES.get(model_type, "")
        case _:
            name = ""
    if name in FAMILIES:
        return name, FAMILIES[name]
    raise ValueError(
        f"config.json: 'architectures' is {architectures!r}, but must be a list of one of these: "
        f"{', '.join(FAMILIES)}"
    )
