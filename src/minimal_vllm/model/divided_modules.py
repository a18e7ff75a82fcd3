"""A decoder's modules where several ranks compute it: what each adds to the plain ones."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.deferred import Operand, computed
from minimal_vllm.model.embedding import Embedding
from minimal_vllm.model.experts import Experts
from minimal_vllm.model.layers import Modules
from minimal_vllm.model.linear import Linear, Projection
from minimal_vllm.model.norm import RMSNorm
from minimal_vllm.model.quantization.experts import QuantizedExperts
from minimal_vllm.model.quantization.fp8 import Fp8Quantizer
from minimal_vllm.model.quantization.int8 import Int8Quantizer
from minimal_vllm.model.quantization.staging import largest_of_rows
from minimal_vllm.model.quantization.weight import QuantizedLinear, QuantizedRowLinear
from minimal_vllm.model.ranks import Ranks

AnyLinear = TypeVar("AnyLinear", bound=Linear)


class DividedEmbedding(Embedding):
    """Table of which each rank holds some rows, in order.

    Args:
        ranks: this rank and the others.
        num_tokens: number of rows that each rank holds.
        size: length of a vector.
        scale: see ``Embedding``.
    """

    def __init__(self, ranks: Ranks, num_tokens: int, size: int, scale: float = 1.0) -> None:
        super().__init__(num_tokens, size, scale)
        self._ranks = ranks
        self._first = ranks.index * num_tokens

    def forward(self, input_ids: Tensor) -> Tensor:
        """Look up the rank's own tokens, and get the others' vectors; see ``Embedding.forward``."""
        rows = input_ids - self._first
        elsewhere = (rows < 0) | (rows >= len(self.weight))
        vectors = super().forward(rows.masked_fill(elsewhere, 0))
        return computed(self._ranks.add(vectors.masked_fill_(elsewhere[:, None], 0)))


class DividedRMSNorm(RMSNorm):
    """Norm of a vector of which each rank holds a part, and the weights of that part.

    Args:
        ranks: this rank and the others.
        name: see ``RMSNorm``.
        size: length of the rank's part.
        eps: see ``RMSNorm``.
        exact: see ``RMSNorm``.
    """

    def __init__(self, ranks: Ranks, name: str, size: int, eps: float, exact: bool = False) -> None:
        super().__init__(name, size, eps, exact)
        self._ranks = ranks

    def normalize(self, x: Operand) -> Tensor:
        """Normalize the last dimension in float32, over all ranks; see ``RMSNorm.normalize``."""
        x = computed(x)
        numbers = x.float()
        squares = computed(self._ranks.add(numbers.square().sum(dim=-1, keepdim=True)))
        mean = squares / (self._ranks.count * x.shape[-1])
        unit = (numbers * torch.rsqrt(mean + self.eps)).to(self.weight.dtype)
        return (unit * self.weight).to(x.dtype)


def divided_head(kind: type[AnyLinear], ranks: Ranks, vocab_size: int) -> type[AnyLinear]:
    """Return a class like ``kind`` that multiplies a rank's rows, and returns all ranks' logits."""

    class DividedHead(kind):  # type: ignore[valid-type,misc]
        def forward(self, x: Operand, out: Tensor | None = None) -> Tensor:
            part = super().forward(x)
            out = part.new_empty(len(part), vocab_size) if out is None else out
            return ranks.concatenate(part, out)

    return DividedHead


def divided_projection(projection: Projection, ranks: Ranks, vocab_size: int) -> Projection:
    """Return a rank's projection with what its quantized weight, if it has one, needs of others.

    A quantized head becomes a divided one. A row that is quantized while it is loaded has one scale
    in all ranks that hold a part of it, as if it were whole.

    Args:
        projection: the rank's part of a projection.
        ranks: this rank and the others.
        vocab_size: number of tokens in the whole vocabulary.
    """
    match projection:
        case QuantizedLinear(parts={"lm_head": _}):
            head = divided_head(QuantizedLinear, ranks, vocab_size)
            return head(projection, projection.quantized, projection.reader)
        case QuantizedRowLinear(reader=Fp8Quantizer() | Int8Quantizer() as reader):
            projection.reader = replace(reader, largest=partial(_largest_of_whole_rows, ranks))
    return projection


def divided_experts(
    make: Callable[[ModelConfig], Experts], ranks: Ranks, config: ModelConfig
) -> Experts:
    """Return a rank's experts, with the scales of whole rows; see ``divided_projection``."""
    experts = make(config)
    match experts:
        case QuantizedExperts(down_reader=Fp8Quantizer() as reader):
            experts.down_reader = replace(reader, largest=partial(_largest_of_whole_rows, ranks))
    return experts


def _largest_of_whole_rows(ranks: Ranks, numbers: Tensor) -> Tensor:
    return ranks.concatenate(largest_of_rows(numbers)).amax(dim=1, keepdim=True)


def divided(modules: Modules, ranks: Ranks, vocab_size: int) -> Modules:
    """Return modules for a rank's part of a model.

    Args:
        modules: modules for the whole model.
        ranks: this rank and the others.
        vocab_size: number of the model's tokens.
    """
    if not isinstance(modules.linear, type):
        raise TypeError("ranks need modules whose linear is a class")

    def convert(path: str, projection: Projection) -> Projection:
        return divided_projection(modules.convert(path, projection), ranks, vocab_size)

    return replace(
        modules,
        embedding=partial(DividedEmbedding, ranks),
        head=divided_head(modules.linear, ranks, vocab_size),
        wide_norm=partial(DividedRMSNorm, ranks),
        complete=ranks.add,
        convert=convert,
        experts=partial(divided_experts, modules.experts, ranks),
    )
