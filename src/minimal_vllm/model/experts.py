"""A mixture of experts: a router chooses a few of many small MLPs for each token.

Source: Shazeer et al. 2017, https://arxiv.org/abs/1701.06538; in the form of Mixtral, Jiang et al.
2024, https://arxiv.org/abs/2401.04088.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from minimal_vllm.model.activation import apply_gate
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.linear import Linear, parameter
from minimal_vllm.model.stored_tensor import Destination


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


class Experts(nn.Module, ABC):
    """Experts of a layer, each a gated MLP. A subclass has their matrices.

    Args:
        config: hyperparameters of a model that has experts.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.experts is None:
            raise ValueError("the model has no experts")
        self.config = config.experts
        self.gate = config.experts.gate or config.activation
        self.gate_up_bias = self.down_bias = None
        if config.experts.biased:
            self.gate_up_bias = parameter(config.experts.count, 2 * config.experts.inner_size)
            self.down_bias = parameter(config.experts.count, config.hidden_size)

    @abstractmethod
    def matrices(self, index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return an expert's ``[2 * inner, hidden]``, gate and up, and ``[hidden, inner]``."""

    @abstractmethod
    def stored_matrices(self) -> Iterator[tuple[str, Tensor | Destination]]:
        """Yield the name and the destination of each tensor that a checkpoint has for matrices."""

    def forward(self, x: Operand, router: Linear) -> Operand:
        """Compute each token by the experts that the router prefers.

        Args:
            x: ``[T, hidden]``.
            router: projection to a logit per expert.

        Returns:
            ``[T, hidden]``: the weighted sum of the experts' results.
        """
        logits = router.forward(x)
        experts, weights = choose_experts(logits, self.config.per_token, self.config.normalized)
        return mix_experts(computed(x), experts, weights, self.compute_expert)

    def compute_expert(self, index: int, x: Tensor) -> Tensor:
        """Compute tokens, ``[n, hidden]``, by one expert: ``down(activation(gate(x)) * up(x))``."""
        gate_up, down = self.matrices(index, x.dtype)
        gate_up_bias, down_bias = (
            None if bias is None else bias[index] for bias in (self.gate_up_bias, self.down_bias)
        )
        product = linear(x, gate_up, gate_up_bias)
        if self.config.interleaved:
            gate, up = product[:, ::2], product[:, 1::2]
        else:
            gate, up = product.chunk(2, dim=-1)
        return linear(apply_gate(self.gate, gate, up), down, down_bias)

    def after_loading(self) -> None:
        """Convert the matrices to the form that ``forward`` reads, once all are loaded."""

    def checkpoint_tensors(self) -> Iterator[tuple[str, Tensor | Destination]]:
        """Yield the name and the destination of each tensor that a checkpoint has for them."""
        yield from self.stored_matrices()
        if self.gate_up_bias is not None and self.down_bias is not None:
            yield "experts.gate_up_proj_bias", self.gate_up_bias
            yield "experts.down_proj_bias", self.down_bias


class DenseExperts(Experts):
    """Experts in the model's dtype. Their matrices are stacked in one tensor for a kernel."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        shapes = self.config.matrices(config.hidden_size)
        self.gate_up = parameter(self.config.count, *shapes["gate_up_proj"])
        self.down = parameter(self.config.count, *shapes["down_proj"])

    def matrices(self, index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return an expert's matrices; see ``Experts.matrices``."""
        return self.gate_up[index], self.down[index]

    def stored_matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and destinations; see ``Experts.stored_matrices``."""
        if self.config.interleaved:
            yield "experts.gate_up_proj", self.gate_up.transpose(1, 2)
            yield "experts.down_proj", self.down.transpose(1, 2)
            return
        for expert, (gate_up, down) in enumerate(zip(self.gate_up, self.down, strict=True)):
            gate, up = gate_up.chunk(2)
            yield f"experts.{expert}.gate_proj.weight", gate
            yield f"experts.{expert}.up_proj.weight", up
            yield f"experts.{expert}.down_proj.weight", down
