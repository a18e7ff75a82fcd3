"""Check of the exercise two-ranks: what each rank reads, and what two of them compute together."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import embedding, silu

from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_lesson
from minimal_vllm_lab.learn.two_processes import CHAPTER, PairedRank, SecondRank, Work

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

PARTS = Rule(
    "Each rank reads its own part of each projection, in the order of the ranks.",
    "What two ranks read by mistake is added twice, and what nobody reads is missing.",
    CHAPTER,
)
WHOLE = Rule(
    "Both ranks together compute what one process computes.",
    "A model that is divided is still the same model.",
    CHAPTER,
)
SAME = Rule(
    "Both ranks return the same numbers, bit for bit.",
    "Each rank samples by itself. With other logits it would sample other tokens, and its "
    "scheduler would make other plans.",
    CHAPTER,
)
ONE_SUM = Rule(
    "One sum over ranks is enough, of one vector per token.",
    "A small sum takes as long as an even smaller one. Two take twice as long, in each layer of "
    "each step.",
    CHAPTER,
)
TOLERANCE = 1e-4
"""Largest difference from one process's results, which are sums in another order."""


@dataclass(frozen=True)
class Projection:
    """A matrix whose rows are divided among ranks in equal parts; the last part may be shorter."""

    num_rows: int
    num_own: int
    """Rows of the matrix that each rank has room for."""
    readers: int
    """Number of neighboring ranks that read the same rows."""

    def of_rank(self, rank: int) -> list[int]:
        """Return the rows that a rank reads."""
        first = rank // self.readers * self.num_own
        return [row for row in range(first, first + self.num_own) if row < self.num_rows]


@dataclass(frozen=True)
class Division:
    """Projections that a checkpoint stores in one tensor, one after the other."""

    projections: tuple[Projection, ...]
    ranks: int


@dataclass(frozen=True)
class Layer:
    """Sizes and weights of an embedding and of an MLP for two ranks, and the tokens to compute."""

    channels: int
    """Channels of each rank's part of the MLP."""
    tokens: tuple[int, ...]
    seed: int
    """Seed of the weights."""

    hidden = 3
    rows = 2
    """Rows of the embedding that each rank has."""

    def table(self) -> Tensor:
        """Return the whole embedding's table, ``[2 * rows, hidden]``."""
        return self._random(2 * self.rows, self.hidden)

    def x(self) -> Tensor:
        """Return the MLP's input, ``[T, hidden]``."""
        return self._random(len(self.tokens), self.hidden)

    def mlp(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the whole MLP's gate, up and down projections and the bias of the last."""
        inner = 2 * self.channels
        shapes = ((inner, self.hidden), (inner, self.hidden), (self.hidden, inner), (self.hidden,))
        return tuple(self._random(*shape) for shape in shapes)  # type: ignore[return-value]

    def _random(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + sum(shape))
        return torch.randn(shape, generator=generator)


def check_ranks(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Compare ranges with their definition, and two processes' results with those of one.

    Returns:
        A lesson about a difference, or None.
    """

    def check_ranges(case: Division, history: History) -> None:
        _check_ranges(module, case, history)

    found = find_lesson(_divisions(), check_ranges, examples=200, seed=seed)
    if found:
        return found
    with closing(SecondRank(Path(str(module.__file__)))) as second:

        def check_layer(case: Layer, history: History) -> None:
            tokens = torch.tensor(case.tokens)
            history.note(
                f"an embedding of {2 * case.rows} rows, tokens {list(case.tokens)}, two ranks"
            )
            _check_together(second, _look_up, module, case, embedding(tokens, case.table()))
            history.note(
                f"an MLP of {case.hidden}, {2 * case.channels} and {case.hidden} channels, "
                f"{len(tokens)} tokens, two ranks"
            )
            gate, up, down, bias = case.mlp()
            x = case.x()
            whole = (silu(x @ gate.T) * (x @ up.T)) @ down.T + bias
            _check_together(second, _compute_mlp, module, case, whole)

        return find_lesson(_layers(), check_layer, examples=30, seed=seed)


def _divisions() -> "SearchStrategy[Division]":
    from hypothesis import strategies as st

    def of_ranks(ranks: int) -> "SearchStrategy[Division]":
        own = st.integers(1, 3)
        even = own.map(lambda size: Projection(size * ranks, size, 1))
        fewer = [heads for heads in (1, 2) if heads < ranks]
        shared = st.tuples(own, st.sampled_from(fewer or [ranks])).map(
            lambda each: Projection(each[0] * each[1], each[0], ranks // each[1])
        )
        shorter = st.integers(ranks, 3 * ranks).map(
            lambda rows: Projection(rows, -(-rows // ranks), 1)
        )
        return st.builds(
            Division,
            st.one_of(
                st.tuples(shorter),  # a vocabulary
                st.tuples(even, shared, shared),  # queries, keys and values
            ),
            st.just(ranks),
        )

    return st.sampled_from([1, 2, 4]).flatmap(of_ranks)


def _layers() -> "SearchStrategy[Layer]":
    from hypothesis import strategies as st

    tokens = st.lists(st.integers(0, 2 * Layer.rows - 1), min_size=1, max_size=4).map(tuple)
    return st.builds(Layer, st.integers(1, 3), tokens, st.integers(0, 9))


def _check_ranges(module: ModuleType, case: Division, history: History) -> None:
    whole = tuple(each.num_rows for each in case.projections)
    own = tuple(each.num_own for each in case.projections)
    for rank in range(case.ranks):
        found = history.call("ranges", module.ranges, whole, own, case.ranks, rank)
        expected, first = [], 0
        for each in case.projections:
            expected.append([first + row for row in each.of_rank(rank)])
            first += each.num_rows
        if [list(each) for each in found] != expected:
            raise Broken(PARTS, f"{found}", f"the indices {expected}")


def _check_together(
    second: SecondRank, work: Work, module: ModuleType, case: Layer, whole: Tensor
) -> None:
    result, of_other, rank = second.compute_with(work, module, case)
    for index, each in enumerate((result, of_other)):
        if each.shape != whole.shape or not torch.allclose(each, whole, atol=TOLERANCE):
            raise Broken(WHOLE, f"{_numbers(each)} in rank {index}", _numbers(whole))
    if not torch.equal(result, of_other):
        raise Broken(SAME, f"{_numbers(of_other)} in rank 1", f"{_numbers(result)} as in rank 0")
    if rank.sums != [tuple(whole.shape)]:
        shapes = " and ".join(f"{list(shape)}" for shape in rank.sums)
        raise Broken(ONE_SUM, f"sums of {shapes or 'nothing'}", f"one of {list(whole.shape)}")


def _numbers(tensor: Tensor) -> str:
    return f"{[round(number, 3) for number in tensor.flatten().tolist()]}, shape {[*tensor.shape]}"


def _look_up(module: ModuleType, case: Layer, rank: PairedRank) -> Tensor:
    part = module.MyEmbedding(rank, case.rows, case.hidden)
    part.weight.copy_(case.table()[rank.index * case.rows :][: case.rows])
    result: Tensor = part(torch.tensor(case.tokens))
    return result


def _compute_mlp(module: ModuleType, case: Layer, rank: PairedRank) -> Tensor:
    gate, up, down, bias = case.mlp()
    own = slice(rank.index * case.channels, (rank.index + 1) * case.channels)
    result: Tensor = module.mlp(case.x(), gate[own], up[own], down[:, own], bias, rank)
    return result
