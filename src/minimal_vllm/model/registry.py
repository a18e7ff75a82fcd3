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


QkNorm = Literal["per head", "all heads"]
"""RMSNorm of queries and keys before the rotation: one for each head, or one over all."""

Pairs = Literal["halves", "neighbors"]
"""Dimensions that the rotary embedding pairs, of n rotated ones: i with i + n / 2, or 2 i with
2 i + 1."""


@dataclass(frozen=True)
class ExpertRules:
    """Rules for reading what config.json says of a mixture of experts."""

    inner_size: str
    """Key of an expert's intermediate size."""
    normalize: Literal["configured", "always"] = "always"
    """Whether a token's weights are scaled to sum to 1: as ``norm_topk_prob`` says, or always."""
    has_dense_layers: bool = False
    """Whether ``decoder_sparse_step`` and ``mlp_only_layers`` may give some layers an MLP."""
    interleaved: bool = False
    """Whether a checkpoint has one tensor ``gate_up_proj`` of all experts, in which rows of gate
    and up alternate, and one ``down_proj``. False: it has three tensors for each expert."""
    biased: bool = False
    """Whether the router and the experts have biases."""
    clamped: bool = False
    """Whether the gate is clamped, as ``swiglu_limit`` and ``swiglu_alpha`` say."""


@dataclass(frozen=True)
class Family:
    """Rules for reading the config.json of one architecture: what it may choose, what is fixed.

    Where a bias is fixed, config.json is ignored, as in transformers. The loader verifies the
    choice, because it rejects missing and unexpected tensors.
    """

    attention_bias: Literal["configured", "configured on qkv", "never", "qkv"] = "configured"
    """Biases of the attention projections: as config.json says, as it says but never on the output
    projection, none, or on q, k and v only."""
    mlp_bias: Literal["configured", "never"] = "never"
    """Biases of the MLP's projections: as config.json says, or none."""
    fused: frozenset[str] = frozenset()
    """Projections that are one tensor in the checkpoint: ``qkv_proj``, ``gate_up_proj``."""
    qk_norm: QkNorm | None = None
    """Norms of queries and keys. None: there are none."""
    attention_sinks: bool = False
    """Whether each query head has a learned sink; see ``AttentionOptions``."""
    norms: NormNames = NormNames()
    """Norms of a layer."""
    exact_norms: bool = False
    """Whether norms multiply by their weights in float32, before the result is rounded."""
    norm_offset: float = 0.0
    """Number to add to the norms' weights in the checkpoint."""
    activation_key: Literal["hidden_act", "hidden_activation"] = "hidden_act"
    """Key of the MLP's activation."""
    scales_embedding: bool = False
    """Whether embeddings are multiplied by the square root of the hidden size."""
    sliding: Literal[
        "never", "always", "by default", "from max_window_layers", "without rope", "but every nth"
    ] = "never"
    """Layers with a sliding window, if config.json has no ``layer_types`` that list them. Those
    that are ``always`` the same contradict any other list."""
    full_every: int = 0
    """With ``but every nth``: every n-th layer has no window."""
    has_nope_layers: bool = False
    """Whether some layers have no rotary embedding (``no_rope_layers``)."""
    experts: ExpertRules | None = None
    """Rules of the mixture of experts that layers have instead of an MLP. None: there is none."""
    tensor_names: Mapping[str, str] = field(default_factory=dict)
    """Parts of tensor names that differ: the model's name -> the checkpoint's name."""
    partial_rotary: bool = False
    """Whether ``partial_rotary_factor`` may leave dimensions of each head unrotated."""
    rotary_pairs: Pairs = "halves"
    """Dimensions that are rotated together."""
    rope_types: Mapping[str, str] = field(default_factory=dict)
    """Names of rope types that mean another type in this architecture."""
    local_theta: float | None = None
    """Default base of the rotary frequencies in layers with a window. None: as in other layers."""
    options: frozenset[str] = frozenset()
    """Keys that only some architectures have, and that are therefore refused in others."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of keys that config.json lacks, in addition to ``COMMON_DEFAULTS``."""

    def checkpoint_name(self, name: str) -> str:
        """Return a checkpoint's name of the tensor that the model calls ``name``."""
        for ours, theirs in self.tensor_names.items():
            name = name.replace(ours, theirs)
        return name


COMMON_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0}
"""Defaults of keys that config.json lacks, for every architecture."""

_QWEN_WINDOW = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}

_ONLY_AFTER = NormNames(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
_SANDWICH = NormNames(
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_SANDWICH_OF_GLM = NormNames(
    "input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"
)

_GEMMA: dict[str, Any] = {"exact_norms": True, "norm_offset": 1.0, "scales_embedding": True}
_GEMMA_DEFAULTS = {
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
_GEMMA_2_DEFAULTS = {
    **_GEMMA_DEFAULTS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_MINISTRAL_3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
_GLM: dict[str, Any] = {
    "attention_bias": "configured on qkv",
    "fused": frozenset({"gate_up_proj"}),
    "partial_rotary": True,
    "rotary_pairs": "neighbors",
    "defaults": {
        "attention_bias": True,
        "head_dim": 128,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1.5625e-7,
    },
}
_OLMO: dict[str, Any] = {"qk_norm": "all heads", "norms": _ONLY_AFTER, "exact_norms": True}

FAMILIES = {
    "LlamaForCausalLM": Family(mlp_bias="configured"),  # Llama 2 and 3, SmolLM2 and many more
    "MistralForCausalLM": Family(
        attention_bias="never", sliding="always", defaults={"sliding_window": 4096}
    ),
    "MinistralForCausalLM": Family(
        attention_bias="never", sliding="by default", defaults={"sliding_window": 4096}
    ),
    "Ministral3ForCausalLM": Family(
        attention_bias="never",
        sliding="always",
        options=frozenset({"llama_4_scaling_beta"}),
        defaults={
            "head_dim": 128,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_parameters": _MINISTRAL_3_ROPE,
        },
    ),
    "MixtralForCausalLM": Family(
        attention_bias="never",
        sliding="always",
        experts=ExpertRules("intermediate_size"),
        tensor_names={
            ".mlp.": ".block_sparse_moe.",
            ".gate_proj.": ".w1.",
            ".up_proj.": ".w3.",
            ".down_proj.": ".w2.",
        },
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0, "num_experts_per_tok": 2},
    ),
    "Qwen2ForCausalLM": Family(  # Qwen2 and Qwen2.5
        attention_bias="qkv", sliding="from max_window_layers", defaults=_QWEN_WINDOW
    ),
    "Qwen3ForCausalLM": Family(
        qk_norm="per head",
        sliding="from max_window_layers",
        defaults={"head_dim": 128, **_QWEN_WINDOW},
    ),
    "Qwen3MoeForCausalLM": Family(
        qk_norm="per head",
        sliding="always",
        experts=ExpertRules("moe_intermediate_size", normalize="configured", has_dense_layers=True),
        defaults={"use_sliding_window": False, "sliding_window": 4096},
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
    "Phi3ForCausalLM": Family(  # Phi-3 and Phi-4
        attention_bias="never",
        fused=frozenset({"qkv_proj", "gate_up_proj"}),
        sliding="always",
        partial_rotary=True,
        rope_types={"su": "longrope", "yarn": "longrope"},
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
    ),
    "Olmo2ForCausalLM": Family(**_OLMO, defaults={"rms_norm_eps": 1e-5}),
    "Olmo3ForCausalLM": Family(
        **_OLMO,
        sliding="but every nth",
        full_every=4,
        local_theta=500_000.0,
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "sliding_window": 4096},
    ),
    "GraniteForCausalLM": Family(
        mlp_bias="configured",
        options=frozenset(
            {
                "embedding_multiplier",
                "attention_multiplier",
                "residual_multiplier",
                "logits_scaling",
            }
        ),
        defaults={"attention_multiplier": 1.0},
    ),
    "GemmaForCausalLM": Family(**_GEMMA, defaults=_GEMMA_DEFAULTS),
    "Gemma2ForCausalLM": Family(
        **_GEMMA,
        norms=_SANDWICH,
        activation_key="hidden_activation",
        sliding="but every nth",
        full_every=2,
        options=frozenset(
            {"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"}
        ),
        defaults={
            **_GEMMA_2_DEFAULTS,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "Gemma3ForCausalLM": Family(
        **_GEMMA,
        norms=_SANDWICH,
        qk_norm="per head",
        activation_key="hidden_activation",
        sliding="but every nth",
        full_every=6,
        local_theta=10_000.0,
        options=frozenset(
            {
                "query_pre_attn_scalar",
                "final_logit_softcapping",
                "rope_local_base_freq",
                "sliding_window_pattern",
            }
        ),
        defaults={
            **_GEMMA_2_DEFAULTS,
            "max_position_embeddings": 131_072,
            "rope_theta": 1_000_000.0,
            "vocab_size": 262_208,
        },
    ),
    "GptOssForCausalLM": Family(
        attention_sinks=True,
        exact_norms=True,
        sliding="but every nth",
        full_every=2,
        experts=ExpertRules("intermediate_size", interleaved=True, biased=True, clamped=True),
        tensor_names={".mlp.gate.": ".mlp.router."},
        options=frozenset({"swiglu_alpha", "swiglu_limit"}),
        defaults={
            "attention_bias": True,
            "head_dim": 64,
            "num_experts_per_tok": 4,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_parameters": _GPT_OSS_ROPE,
            "rope_theta": 150_000.0,
            "sliding_window": 128,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
            "torch_dtype": "bfloat16",  # the published files have no dtype
        },
    ),
    "GlmForCausalLM": Family(**_GLM),
    "Glm4ForCausalLM": Family(**_GLM, norms=_SANDWICH_OF_GLM),
}


_OTHER_NAMES = {"LLaMAForCausalLM": "LlamaForCausalLM"}
"""Names of architectures in old checkpoints -> current names."""

MULTIMODAL = {
    "Gemma3ForConditionalGeneration": "gemma3_text",
    "Mistral3ForConditionalGeneration": "mistral",  # Mistral Small 3 and Ministral 3
}
"""Architectures of several modalities, of which the text model is read -> default of the text
model's ``model_type``."""

_MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral": "MinistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
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
    if "eagle3" in str(architectures).lower():
        raise ValueError(
            f"config.json: 'architectures' is {architectures!r}: an EAGLE-3 head only guesses for "
            f"a model: name it in speculative_config, with the method eagle3"
        )
    asked = "'architectures'" if architectures or not model_type else "'model_type'"
    supported = ", ".join([*FAMILIES, *MULTIMODAL] if "arch" in asked else _MODEL_TYPES)
    raise ValueError(
        f"config.json: {asked} is {architectures or model_type!r}, but must be "
        f"{'a list of one' if 'arch' in asked else 'one'} of these: {supported}"
    )
