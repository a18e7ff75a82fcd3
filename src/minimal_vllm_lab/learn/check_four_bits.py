"""Check of the exercise four-bits: numbers and matrices, compared with the engine's own."""

from types import ModuleType
from typing import TYPE_CHECKING

import torch

from minimal_vllm.model.quantization.int4 import Int4Weight, pack
from minimal_vllm.model.quantization_config import Int4
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_lesson

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

UNPACKED = Rule(
    "unpack returns the numbers in the order of the columns.",
    "A number in the wrong column is multiplied with the wrong input.",
    "16-quantization",
)
DEQUANTIZED = Rule(
    "A weight is (number - zero) * scale, with the scale and the zero point of its group.",
    "Each group has a scale of its own, so that one large weight doesn't cost all others their "
    "precision.",
    "16-quantization",
)
DTYPE = Rule(
    "A weight is computed in float32, and then rounded to the dtype that was asked for.",
    "A model computes in bfloat16, and torch refuses a product of two dtypes.",
    "16-quantization",
)
Case = tuple[int, int, bool, bool]
"""Columns, columns per group, whether zero points are all the same, whether columns are ordered."""


def check_four_bits(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Compare ``unpack`` and ``MyInt4Weight``, and return a lesson about a difference, or None."""

    def run(case: Case, history: History) -> None:
        columns, group_size, symmetric, ordered = case
        history.note(
            f"3 rows of {columns} columns, in groups of {group_size}; "
            f"{'one zero point' if symmetric else 'zero points'}"
            f"{'; the columns are ordered' if ordered else ''}"
        )
        generator = torch.Generator().manual_seed(columns + group_size)
        numbers = torch.randint(0, 16, (3, columns), generator=generator, dtype=torch.uint8)
        found = module.unpack(pack(numbers))
        if found.shape != numbers.shape:
            raise Broken(UNPACKED, f"the shape {list(found.shape)}", f"{list(numbers.shape)}")
        if not torch.equal(found, numbers):
            raise Broken(UNPACKED, f"row 0: {found[0].tolist()}", f"{numbers[0].tolist()}")
        if found.dtype != torch.uint8:
            raise Broken(UNPACKED, f"numbers in {found.dtype}", "torch.uint8")
        stored = Int4(group_size, symmetric=symmetric, ordered=ordered)
        theirs, ours = (kind(columns, {"all": 3}, stored) for kind in (_class(module), Int4Weight))
        _fill(ours, numbers, generator)
        theirs.load_state_dict(ours.state_dict())
        _compare(theirs, ours)

    return find_lesson(_cases(), run, examples=30, seed=seed)


def _class(module: ModuleType) -> type[Int4Weight]:
    made: type[Int4Weight] = module.MyInt4Weight
    return made


def _cases() -> "SearchStrategy[Case]":
    from hypothesis import strategies as st

    sizes = st.sampled_from([(32, 32), (64, 32), (64, 64), (192, 64)])
    return st.builds(lambda size, *flags: (*size, *flags), sizes, st.booleans(), st.booleans())


def _fill(weight: Int4Weight, numbers: torch.Tensor, generator: torch.Generator) -> None:
    weight.packed.copy_(pack(numbers))
    weight.scale.copy_(torch.rand(weight.scale.shape, generator=generator) + 0.5)
    if weight.zero is not None:
        weight.zero.copy_(torch.randint(0, 16, weight.zero.shape, generator=generator))
    if weight.order is not None:
        weight.order.copy_(torch.randperm(len(weight.order), generator=generator))


def _compare(theirs: Int4Weight, ours: Int4Weight) -> None:
    found, expected = theirs.dequantized(torch.float32), ours.dequantized(torch.float32)
    if found.shape != expected.shape:
        raise Broken(DEQUANTIZED, f"shape {list(found.shape)}", f"shape {list(expected.shape)}")
    wrong = (found - expected).abs() > 1e-5
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise Broken(
            DEQUANTIZED,
            f"row {row}, column {column}: {found[row, column]:.4f}",
            f"{expected[row, column]:.4f}",
        )
    rounded = theirs.dequantized(torch.bfloat16)
    if rounded.dtype != torch.bfloat16:
        raise Broken(DTYPE, f"dequantized(torch.bfloat16) is in {rounded.dtype}", "torch.bfloat16")
    wrong = rounded != ours.dequantized(torch.bfloat16)
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise Broken(
            DTYPE,
            f"row {row}, column {column}: {rounded[row, column]:.6g}",
            f"{expected[row, column].bfloat16():.6g}, which is {expected[row, column]:.6g} rounded",
        )
