"""Exercise two-ranks: divide a model between two processes.

The idea. A product is divided by its outputs or by its inputs. Divided by outputs, each rank has
some of the results. Divided by inputs, it needs some of the inputs, and has a part of each result,
which must be added up. An MLP divides first by outputs, and then by inputs::

    rank 0   x ──► gate, up ──► channels 0-3 ──► down ──► part of every output  ┐
    rank 1   x ──► gate, up ──► channels 4-7 ──► down ──► part of every output  ┴─ sum

A checkpoint holds the whole, possibly several projections in one tensor. Each rank reads its own
rows of each. Here are 4 query heads and 2 key-value heads for 4 ranks, a row per head::

    index    0  1  2  3 | 4  5 | 6  7        rank 0 reads  0, 4, 6
             queries     keys   values       rank 1 reads  1, 4, 6
    rank     0  1  2  3  01 23  01 23        rank 2 reads  2, 5, 7

What you have: ``ranks.index`` and ``ranks.count``, the number of this rank and of all, and
``ranks.add(part)``, which returns the sum of all ranks' tensors. All ranks must call it equally
often. In ``MyEmbedding``, ``self._ranks``, and ``self._first``, the first token whose vector is
here; ``super().forward(ids)`` looks vectors up, in this rank's rows only.

What to write: ``ranges``, ``MyEmbedding.forward`` and ``mlp``.

How it is checked: ``ranges`` with up to four ranks. Then two processes load this file, and compute
embeddings and MLPs together. Each may add once. What they return must be the same in both, and be
what one process computes.

    minimal-vllm learn check two-ranks
"""

from torch import Tensor
from torch.nn.functional import silu

from minimal_vllm.model.embedding import Embedding
from minimal_vllm.model.ranks import Ranks

__all__ = ["silu"]


def ranges(
    whole_sizes: tuple[int, ...], own_sizes: tuple[int, ...], ranks: int, rank: int
) -> tuple[range, ...]:
    """Return the indices that a rank reads of a tensor, a range for each projection in it.

    Args:
        whole_sizes: number of rows of each projection. The second begins where the first ends.
        own_sizes: number of rows that a rank has room for. Where those of all ranks are more than
            there are, either neighboring ranks read the same rows, in equal numbers, or it is less
            than twice as many, and the last ranges are shorter, or empty.
        ranks: number of ranks.
        rank: this rank.
    """
    raise NotImplementedError


class MyEmbedding(Embedding):
    """A table of which each rank has some rows, in order."""

    def __init__(self, ranks: Ranks, num_tokens: int, size: int) -> None:
        super().__init__(num_tokens, size)
        self._ranks = ranks
        self._first = ranks.index * num_tokens

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the vectors of all tokens, ``[T, size]``, in every rank.

        Args:
            input_ids: ``[T]`` int64, tokens of the whole vocabulary.
        """
        raise NotImplementedError


def mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, bias: Tensor, ranks: Ranks) -> Tensor:
    """Return ``down(silu(gate(x)) * up(x)) + bias``, ``[T, hidden]``, in every rank.

    Args:
        x: ``[T, hidden]``, the same in all ranks.
        gate: ``[channels, hidden]``, this rank's rows.
        up: ``[channels, hidden]``, this rank's rows.
        down: ``[hidden, channels]``, this rank's columns.
        bias: ``[hidden]``, the same in all ranks.
        ranks: this rank and the other.
    """
    raise NotImplementedError
