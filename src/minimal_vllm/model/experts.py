"""A mixture of experts: a router chooses a few of many small MLPs for each token.

Source: Shazeer et al. 2017, https://arxiv.org/abs/1701.06538; in the form of Mixtral, Jiang et al.
2024, https://arxiv.org/abs/2401.04088.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from minimal_vllm.model.activation import ACTIVATIONS
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.linear import parameter


def choose_experts(logits: Tensor, per_token: int, normalized: bool) -> tuple[Tensor, Tensor]:
    """Choose each token's experts.

    Args:
        logits: ``[T, E]``: the router's logits.
        per_token: number of experts to choose, k.
        normalized: whether a token's weights are scaled to sum to 1.

    Returns:
        Indices of the experts, ``[T, k]`` int64, best first; and the factors of their results,
        ``[T, k]`` float32.
    """
    probabilities = logits.softmax(dim=-1, dtype=torch.float32)
    weights, experts = probabilities.topk(per_token, dim=-1)
    if normalized:
        weights /= weights.sum(dim=-1, keepdim=True)
    return experts, weights


def mix_experts(
    x: Tensor, experts: Tensor, weights: Tensor, expert: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Return the weighted sum of each token's experts.

    The pairs of a token and an expert are sorted by expert. Each expert then computes all of its
    tokens at once, and nothing loops over tokens.

    Args:
        x: ``[T, hidden]``.
        experts: ``[T, k]`` int64: experts of each token.
        weights: ``[T, k]`` float32: factors of their results.
        expert: computes one expert, from its index and its tokens, ``[n, hidden]``. Called once for
            each expert that has a token.

    Returns:
        ``[T, hidden]``.
    """
    per_token = experts.shape[1]
    order = experts.flatten().argsort(stable=True)
    counts = experts.flatten().bincount().tolist()
    results = x.new_empty(len(order), x.shape[1])
    for index, pairs in enumerate(torch.split(order, counts)):
        if len(pairs):
            results[pairs] = expert(index, x[pairs // per_token])
    weighted = results.view(*experts.shape, x.shape[1]) * weights[:, :, None]
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
        experts, weights = choose_experts(logits, self.config.per_token, self.config.normalized)
        return mix_experts(computed(x), experts, weights, self.compute_expert)

    def compute_expert(self, index: int, x: Tensor) -> Tensor:
        """Compute tokens, ``[n, hidden]``, by one expert: ``down(activation(gate(x)) * up(x))``."""
        gate, up = linear(x, self.gate_up[index]).chunk(2, dim=-1)
        return linear(ACTIVATIONS[self.activation](gate).mul_(up), self.down[index])

    def checkpoint_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the destination of each tensor that a checkpoint has for it."""
        for expert, (gate_up, down) in enumerate(zip(self.gate_up, self.down, strict=True)):
            gate, up = gate_up.chunk(2)
            yield f"experts.{expert}.gate_proj.weight", gate
            yield f"experts.{expert}.up_proj.weight", up
            yield f"experts.{expert}.down_proj.weight", down
