"""A mixture of experts: a router chooses a few of many small MLPs for each token.

Source: Shazeer et al. 2017, https://arxiv.org/abs/1701.06538; in the form of Mixtral, Jiang et al.
2024, https://arxiv.org/abs/2401.04088.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from minimal_vllm.model.activation import ACTIVATIONS
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.experts_config import ExpertsConfig
from minimal_vllm.model.linear import parameter
from minimal_vllm.model.supported import Activation


@dataclass(frozen=True, slots=True)
class Routes:
    """The experts that compute each token."""

    experts: Tensor
    """``[T, k]`` int64: indices of a token's experts, all different, best first."""
    weights: Tensor
    """``[T, k]`` float32: factors of the experts' results."""


def choose_experts(logits: Tensor, config: ExpertsConfig) -> Routes:
    """Choose each token's experts.

    Args:
        logits: ``[T, E]``: the router's logits.
        config: settings of the experts.
    """
    probabilities = logits.softmax(dim=-1, dtype=torch.float32)
    weights, experts = probabilities.topk(config.per_token, dim=-1)
    if config.normalized:
        weights /= weights.sum(dim=-1, keepdim=True)
    return Routes(experts, weights)


def mix_experts(
    x: Tensor, routes: Routes, gate_up: Tensor, down: Tensor, activation: Activation
) -> Tensor:
    """Return the weighted sum of each token's experts.

    The pairs of a token and an expert are sorted by expert. Each expert then multiplies all of its
    tokens at once, and nothing loops over tokens.

    Args:
        x: ``[T, hidden]``.
        routes: experts of each token.
        gate_up: ``[E, 2 * inner, hidden]``: weights of each expert, gate first.
        down: ``[E, hidden, inner]``.
        activation: name of the gate's activation, a key of ``ACTIVATIONS``.

    Returns:
        ``[T, hidden]``.
    """
    tokens, per_token = routes.experts.shape
    chosen = routes.experts.flatten()
    order = chosen.argsort(stable=True)
    counts = chosen.bincount(minlength=len(gate_up)).tolist()
    results = x.new_empty(len(order), x.shape[1])
    for expert, pairs in enumerate(order.split(counts)):
        if len(pairs):
            gate, up = linear(x[pairs // per_token], gate_up[expert]).chunk(2, dim=-1)
            results[pairs] = linear(ACTIVATIONS[activation](gate).mul_(up), down[expert])
    weighted = results.view(tokens, per_token, x.shape[1]) * routes.weights[:, :, None]
    return weighted.sum(dim=1).to(x.dtype)


class Experts(nn.Module):
    """Experts of a layer, each a gated MLP. Their weights are stacked in one tensor for a kernel.

    Args:
        config: hyperparameters of a model that has experts.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.experts is None:
            raise ValueError("the model has no experts")
        self.config = config.experts
        self.activation = config.activation
        count, inner = config.experts.count, config.experts.inner_size
        self.gate_up = parameter(count, 2 * inner, config.hidden_size)
        self.down = parameter(count, config.hidden_size, inner)

    def forward(self, x: Operand, logits: Tensor) -> Operand:
        """Compute each token by the experts that the router prefers.

        Args:
            x: ``[T, hidden]``.
            logits: ``[T, E]``: the router's logits.

        Returns:
            ``[T, hidden]``: the weighted sum of the experts' results.
        """
        routes = choose_experts(logits, self.config)
        return mix_experts(computed(x), routes, self.gate_up, self.down, self.activation)

    def checkpoint_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the destination of each tensor that a checkpoint has for it."""
        for expert, (gate_up, down) in enumerate(zip(self.gate_up, self.down, strict=True)):
            gate, up = gate_up.chunk(2)
            yield f"experts.{expert}.gate_proj.weight", gate
            yield f"experts.{expert}.up_proj.weight", up
            yield f"experts.{expert}.down_proj.weight", down
