"""The supported architectures, and what sets each apart from a plain Llama."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class NormNames:
    """Names, in the checkpoint, of a layer's norms. None: the layer has no such norm."""

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
    """How the config.json of one architecture is read: what it may choose, what is fixed.

    Where a bias is fixed, config.json has no say, as in transformers; the loader then proves the
    choice right, as it accepts neither a missing nor an unexpected tensor.
    """

    attention_bias: Literal["configured", "never", "qkv"] = "configured"
    """Biases of the attention's projections: as ``attention_bias`` says, none, or q, k, v only."""
    mlp_bias: Literal["configured", "never"] = "never"
    """Biases of the MLP's projections: as ``mlp_bias`` says, or none."""
    qk_norm: bool = False
    """Whether each head's query and key go through an RMSNorm before the rotation."""
    norms: NormNames = NormNames()
    """Where a layer's norms are."""
    sliding: Literal["never", "always", "from max_window_layers", "without rope"] = "never"
    """Which layers have a sliding window, where ``layer_types`` doesn't list them."""
    has_nope_layers: bool = False
    """Whether some layers go without the rotary embedding (``no_rope_layers``)."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What keys absent from config.json mean, beside ``COMMON_DEFAULTS``."""


COMMON_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0}

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
"""Names in old checkpoints -> today's."""

_MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
"""``model_type`` in a config.json -> the architecture, where the file doesn't name it."""


def find_family(architectures: object, model_type: object = None) -> tuple[str, Family]:
    """Return the architecture of a config.json, and its family.

    Args:
        architectures: ``architectures`` in the file.
        model_type: ``model_type`` in the file, which counts if there are no ``architectures``.

    Raises:
        ValueError: if this isn't exactly one supported architecture.
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
