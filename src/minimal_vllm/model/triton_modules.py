"""A decoder's modules on a GPU, implemented with our own Triton kernels.

Each computes what its base class computes. Some results are deferred (see ``deferred``): the norm
of a single token, which the next projection computes on the fly; a product whose inner sum is split
into parts, which the next norm adds up; and parts of several ranks, for which it does the same.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, mm
from torch.nn.functional import linear

from minimal_vllm.attention.interface import StepAttention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.experts import DenseExperts, Experts
from minimal_vllm.model.kernels.few_rows import can_use_few_rows, choose_tile, few_rows_product
from minimal_vllm.model.kernels.few_tokens import (
    MAX_TOKENS,
    gated_products_of_pairs,
    sums_of_experts,
)
from minimal_vllm.model.kernels.gate import act_and_mul
from minimal_vllm.model.kernels.gated_product import can_use_gated_product, gated_product
from minimal_vllm.model.kernels.grouped import gated_grouped_product, weighted_grouped_product
from minimal_vllm.model.kernels.heads import norm_rotate_store
from minimal_vllm.model.kernels.matrices import Matrices
from minimal_vllm.model.kernels.matvec import add_norm_matvec, can_use_matvec, matvec
from minimal_vllm.model.kernels.norm import add_norm
from minimal_vllm.model.kernels.route import ExpertLists, route, route_and_list
from minimal_vllm.model.kernels.split import can_use_split, split_linear
from minimal_vllm.model.layers import Heads, Modules, SelfAttention
from minimal_vllm.model.linear import GatedLinear, Linear, RowLinear
from minimal_vllm.model.norm import RMSNorm
from minimal_vllm.model.rope import Rotation


@dataclass(frozen=True, slots=True)
class Normed:
    """Deferred norm of the residual stream of a single token.

    Computing it also writes ``total``, the new residual stream. This must happen before the stream
    is read again.
    """

    residual: Tensor
    """``[1, hidden]``: the stream before ``x`` is added."""
    x: Tensor | None
    """``[1, hidden]``: addend of the stream. None: nothing is added."""
    total: Tensor
    """``[1, hidden]``: memory for the sum; ``residual`` itself if nothing is added."""
    weight: Tensor
    """``[hidden]``: weight of the norm."""
    eps: float

    def compute(self) -> Tensor:
        """Return the normalized stream, ``[1, hidden]``, and write ``total``."""
        return add_norm(self.residual, self.x, self.weight, self.eps, self.total)[1]


@dataclass(frozen=True, slots=True)
class PartialSums:
    """Product whose inner sum was split into parts; deferred until the parts are added."""

    parts: Tensor
    """``[parts, T, out]``, in float32 or in ``dtype``."""
    dtype: torch.dtype
    """Dtype of the product."""

    def compute(self) -> Tensor:
        """Return the sum of the parts, ``[T, out]``."""
        return self.parts.sum(dim=0).to(self.dtype)


class RankSums(Protocol):
    """Sums over the ranks, at once or as a part of the norm that follows."""

    def add_now(self, parts: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the sum of all ranks' parts, in a dtype; may overwrite ``parts``."""

    def add_norm(
        self, part: "PartOfSum", residual: Operand, weight: Tensor, eps: float
    ) -> tuple[Tensor, Operand]:
        """Add a sum to the residual stream; return the stream's norm and the stream."""


@dataclass(frozen=True, slots=True)
class PartOfSum:
    """A rank's part of a sum over ranks, deferred: the norm after it may add up all parts.

    It can be computed once.
    """

    parts: Tensor
    """``[parts, T, hidden]``, contiguous, whose sum is the rank's part."""
    dtype: torch.dtype
    """Dtype of the sum."""
    ranks: RankSums

    def compute(self) -> Tensor:
        """Return the sum of all ranks' parts, ``[T, hidden]``."""
        return self.ranks.add_now(self.parts, self.dtype)


@dataclass(frozen=True, slots=True)
class DividedStream:
    """Residual stream of which each rank keeps up its own share of the tokens."""

    stream: Tensor
    """``[T, hidden]``, of which only the rank's share is right."""
    gather: Callable[[Tensor], Tensor]
    """Puts all ranks' shares together."""

    def compute(self) -> Tensor:
        """Return the whole stream."""
        return self.gather(self.stream)


class TritonLinear(Linear):
    """Projection by our own kernel for a single token, and by the library's for more."""

    def forward(self, x: Operand, out: Tensor | None = None) -> Tensor:
        """Project ``x``; see ``Linear.forward``."""
        if isinstance(x, Normed) and out is None:
            return add_norm_matvec(
                x.residual, x.x, x.total, x.weight, x.eps, self.weight, self.bias
            )
        x = computed(x)
        if can_use_matvec(x):
            return matvec(x, self.weight, self.bias, out)
        if can_use_few_rows(x, self.weight):
            return few_rows_product(x, self.weight, self.bias, choose_tile(self.weight), out)
        if out is not None and self.bias is None:
            return mm(x, self.weight.T, out=out)
        product = linear(x, self.weight, self.bias)
        return product if out is None else out.copy_(product)


class TritonRowLinear(RowLinear):
    """Projection that splits the inner sum of a small product, so that all SMs have work."""

    def forward(self, x: Operand) -> Operand:
        """Project ``x``; see ``RowLinear.forward``."""
        x = computed(x)
        if can_use_matvec(x):
            return matvec(x, self.weight, self.bias)
        if can_use_split(x, self.weight):
            return PartialSums(split_linear(x, self.weight, self.bias), x.dtype)
        if can_use_few_rows(x, self.weight):
            tile = choose_tile(self.weight, may_split=True)
            product = few_rows_product(x, self.weight, self.bias, tile)
            return PartialSums(product, x.dtype) if tile.parts > 1 else product
        return linear(x, self.weight, self.bias)


class TritonGatedLinear(GatedLinear):
    """Gated projection that fuses product and activation for a single token and for thousands."""

    def forward(self, x: Operand) -> Tensor:
        """Project ``x``; see ``GatedLinear.forward``."""
        if isinstance(x, Normed):
            return add_norm_matvec(
                x.residual,
                x.x,
                x.total,
                x.weight,
                x.eps,
                self.weight,
                self.bias,
                activation=self.activation,
            )
        x = computed(x)
        if can_use_few_rows(x, self.weight):
            tile = choose_tile(self.weight, gated=True)
            return few_rows_product(x, self.weight, self.bias, tile, activation=self.activation)
        if can_use_gated_product(x, self.weight, self.bias):
            return gated_product(x, self.weight, self.activation)
        return act_and_mul(linear(x, self.weight, self.bias), self.activation)


class TritonRMSNorm(RMSNorm):
    """Norm that adds to the residual stream and normalizes it in one pass over memory."""

    def forward(self, x: Operand, residual: Operand | None = None) -> tuple[Operand, Operand]:
        """Add ``x`` to the residual stream and normalize the sum; see ``RMSNorm.forward``."""
        if residual is None:
            return self._begin(computed(x))
        if isinstance(x, PartOfSum):
            return x.ranks.add_norm(x, residual, self.weight, self.eps)
        residual = computed(residual)
        if can_use_matvec(residual) and not isinstance(x, PartialSums):
            total = torch.empty_like(residual)
            return Normed(residual, computed(x), total, self.weight, self.eps), total
        added = x.parts if isinstance(x, PartialSums) else computed(x)
        residual, normed = add_norm(residual, added, self.weight, self.eps)
        return normed, residual

    def _begin(self, residual: Tensor) -> tuple[Operand, Tensor]:
        """Normalize a residual stream that ``residual`` starts."""
        if can_use_matvec(residual):
            return Normed(residual, None, residual, self.weight, self.eps), residual
        return add_norm(residual, None, self.weight, self.eps)[1], residual

    def normalize(self, x: Operand) -> Tensor:
        """Normalize the last dimension of ``x``; see ``RMSNorm.normalize``."""
        return add_norm(computed(x).contiguous(), None, self.weight, self.eps)[1]


class KernelExperts(Experts):
    """Experts in two ways: pair by pair for a few tokens, grouped by expert for more."""

    @abstractmethod
    def matrices_of_kernels(self) -> tuple[Matrices, Matrices]:
        """Return the matrices of gate and up, and those of down, with their biases."""

    def forward(self, x: Operand, router: Linear) -> Operand:
        """Compute each token by its experts; see ``Experts.forward``."""
        if not isinstance(x, Normed):
            x = computed(x)
        num_tokens = 1 if isinstance(x, Normed) else len(x)
        if num_tokens <= self.max_few_tokens:
            return self._pair_by_pair(x, router)
        x, per_token = computed(x), self.config.per_token
        logits = router.forward(x)
        _, weights, lists = route_and_list(logits, per_token, normalized=self.config.normalized)
        return PartialSums(self.compute_grouped(x, weights, lists), x.dtype)

    @property
    def max_few_tokens(self) -> int:
        """Return the maximum number of tokens that are computed pair by pair."""
        return MAX_TOKENS

    def compute_grouped(self, x: Tensor, weights: Tensor, lists: ExpertLists) -> Tensor:
        """Compute tokens grouped by expert.

        Args:
            x: ``[T, hidden]``.
            weights: ``[T, k]`` float32: weights of each token's experts.
            lists: the tokens of each expert.

        Returns:
            ``[k, T, hidden]``: the weighted result of each token's n-th expert.
        """
        gate_up, down = self.matrices_of_kernels()
        inner = gated_grouped_product(x, lists, self.config.per_token, gate_up, self.gate)
        return weighted_grouped_product(inner, weights, lists, down)

    def _pair_by_pair(self, x: Operand, router: Linear) -> Tensor:
        logits = router.forward(x)
        experts, weights = route(logits, self.config.per_token, normalized=self.config.normalized)
        gate_up, down = self.matrices_of_kernels()
        norm = None
        if isinstance(x, Normed):  # the router has computed the residual stream already
            norm, x = (x.weight, x.eps), x.total
        inner = gated_products_of_pairs(computed(x), norm, experts, gate_up, self.gate)
        return sums_of_experts(inner, experts, weights, down)


class TritonExperts(KernelExperts, DenseExperts):
    """Experts in the model's dtype."""

    def matrices_of_kernels(self) -> tuple[Matrices, Matrices]:
        """Return the matrices; see ``KernelExperts.matrices_of_kernels``."""
        gate_up = Matrices(self.gate_up, self.gate_up_bias, self.config.interleaved)
        return gate_up, Matrices(self.down, self.down_bias)


class TritonSelfAttention(SelfAttention):
    """Attention that normalizes, rotates and stores a token's heads in one pass over memory."""

    def rotate_and_store(
        self, qkv: Tensor, rotation: Rotation | None, attend: StepAttention, cache: LayerCache
    ) -> Heads:
        """Normalize and rotate ``qkv`` in place; see ``SelfAttention.rotate_and_store``."""
        self.normalize_whole(qkv)
        norms = None
        if self.q_norm and self.k_norm and not self.normalizes_whole:
            norms = self.q_norm.weight, self.k_norm.weight
        norm_rotate_store(
            qkv,
            norms=norms,
            eps=self.q_norm.eps if self.q_norm else 0.0,
            rotation=rotation,
            slots=attend.slots,
            cache=cache,
        )
        sizes = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        q, k, v = qkv.view(len(qkv), -1, self.head_dim).split_with_sizes(sizes, dim=1)
        return q, k, v


TRITON_MODULES = Modules(
    linear=TritonLinear,
    row_linear=TritonRowLinear,
    gated_linear=TritonGatedLinear,
    norm=TritonRMSNorm,
    attention=TritonSelfAttention,
    experts=TritonExperts,
)
