"""Reading what config.json says of a mixture of experts. Nothing here imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minimal_vllm.model.json_fields import flag, integer, positive
from minimal_vllm.model.registry import ExpertRules
from minimal_vllm.model.supported import ClampedGate


@dataclass(frozen=True)
class ExpertsConfig:
    """Settings of the layers that have a mixture of experts instead of an MLP."""

    count: int
    """Number of experts in a layer."""
    per_token: int
    """Number of experts that compute each token."""
    inner_size: int
    """Intermediate size of one expert."""
    normalized: bool
    """Whether the weights of a token's experts are scaled to sum to 1."""
    interleaved: bool = False
    """Whether rows of gate and up alternate; see ``ExpertRules``. False: gate, then up."""
    biased: bool = False
    """Whether the router and the experts have biases."""
    gate: ClampedGate | None = None
    """Clamped gate of the experts. None: the model's activation."""

    def matrices(self, hidden_size: int) -> dict[str, tuple[int, int]]:
        """Return the output and input size of an expert's two matrices."""
        return {
            "gate_up_proj": (2 * self.inner_size, hidden_size),
            "down_proj": (hidden_size, self.inner_size),
        }

    def expert_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters of one expert."""
        shapes = self.matrices(hidden_size).values()
        return sum(out_size * (in_size + self.biased) for out_size, in_size in shapes)

    def num_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters of a layer's router and experts."""
        return self.count * (hidden_size + self.biased + self.expert_parameters(hidden_size))

    def expected_hit(self, num_tokens: int) -> float:
        """Return the expected number of experts that compute at least one of ``num_tokens`` tokens.

        The router is assumed to choose each expert equally often, independently for each token.
        """
        missed = (1 - self.per_token / self.count) ** num_tokens
        return self.count * (1 - missed)


def read_experts(raw: Mapping[str, Any], rules: ExpertRules) -> ExpertsConfig:
    """Return the settings of the experts that config.json describes.

    Args:
        raw: config.json with the family's defaults filled in and null values removed.
        rules: the family's rules for experts.

    Raises:
        ValueError: a key is missing or invalid.
    """
    count = _num_experts(raw)
    per_token = integer(raw, "num_experts_per_tok")
    if per_token > count:
        raise ValueError(
            f"config.json: num_experts_per_tok is {per_token}, but there are only {count} experts"
        )
    gate = None
    if rules.clamped:
        gate = ClampedGate(positive(raw, "swiglu_limit"), positive(raw, "swiglu_alpha"))
    return ExpertsConfig(
        count=count,
        per_token=per_token,
        inner_size=integer(raw, rules.inner_size),
        normalized=rules.normalize == "always" or flag(raw, "norm_topk_prob"),
        interleaved=rules.interleaved,
        biased=rules.biased,
        gate=gate,
    )


def read_sparse_layers(raw: Mapping[str, Any], rules: ExpertRules, num_layers: int) -> list[bool]:
    """Return, for each layer, whether it has a mixture of experts.

    Args:
        raw: config.json with the family's defaults filled in and null values removed.
        rules: the family's rules for experts.
        num_layers: number of layers.

    Raises:
        ValueError: ``mlp_only_layers`` or ``decoder_sparse_step`` is invalid.
    """
    if not rules.has_dense_layers:
        return [True] * num_layers
    step = integer(raw, "decoder_sparse_step", 1)
    dense = raw.get("mlp_only_layers", [])
    if not isinstance(dense, list) or not all(
        type(layer) is int and 0 <= layer < num_layers for layer in dense
    ):
        raise ValueError(
            f"config.json: mlp_only_layers is {dense!r}, but must be a list of layers, each an "
            f"integer from 0 to {num_layers - 1}"
        )
    return [(layer + 1) % step == 0 and layer not in dense for layer in range(num_layers)]


def _num_experts(raw: Mapping[str, Any]) -> int:
    """Return the number of experts, which has one name in some files and another in others."""
    names = [name for name in ("num_experts", "num_local_experts") if name in raw]
    counts = {integer(raw, name) for name in names or ["num_experts"]}
    if len(counts) > 1:
        raise ValueError("config.json: num_experts and num_local_experts differ")
    return counts.pop()
