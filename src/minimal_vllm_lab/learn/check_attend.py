"""Check of the exercise kv-cache: attention over a text at once, and token by token."""

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from minimal_vllm_lab.check.attention import Case, check_shape, compare, on_dense
from minimal_vllm_lab.check.lesson import Lesson, Rule
from minimal_vllm_lab.check.paged_case import PagedCase, make_case
from minimal_vllm_lab.check.search import History, find_lesson, find_mistake

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from minimal_vllm_lab.check.attention_mistakes import Attend

SAME = Rule(
    "attend returns softmax(q k^T * scale) v, where a token attends to itself and to earlier "
    "tokens.",
    "The model was trained with this mask and this order of heads. Any other gives another text.",
    "02-kv-cache",
)
HALF = Rule(
    "The result has the shape and the dtype of q.",
    "Models are in half precision, and the next projection takes the result as its input. Scores "
    "are computed in float32 all the same: convert at the end.",
    "02-kv-cache",
)
IN_FLOAT32 = Rule(
    "Scores and their softmax are computed in float32, even if q is in half precision.",
    "Between 256 and 512, float16 has only multiples of 0.25. A rounded score is off by up to "
    "0.125, and the weight of its token by 13 %.",
    "02-kv-cache",
)
HALF_TOLERANCE = 0.005
"""Largest error of a result that was rounded to float16, but computed in float32."""
STEP_BY_STEP = Rule(
    "A text computed token by token gives the same result as the whole text at once.",
    "A cache of keys and values may save work, but must not change the result.",
    "02-kv-cache",
)


def check_attend(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Compare ``attend`` with plain attention, and return a lesson about a difference, or None."""
    attend: Attend = module.attend

    def run(case: Case, history: History) -> None:
        ((cached, new),) = case.lengths
        history.note(
            f"query heads: {case.heads[0]}, kv heads: {case.heads[1]}, head_dim {case.head_dim}, "
            f"window {case.window}"
        )
        history.note(f"{cached} tokens in the cache, {new} new")
        dense = make_case(case.lengths, heads=case.heads, head_dim=case.head_dim)
        whole = on_dense(attend, dense, case.window)
        compare(whole, dense, case, SAME)
        for position in range(cached, cached + new):
            history.note(f"the token at position {position} alone, with {position} in the cache")
            single = replace(case, lengths=((position, 1),))
            dense = make_case(single.lengths, heads=case.heads, head_dim=case.head_dim)
            compare(on_dense(attend, dense, case.window), dense, single, STEP_BY_STEP)
            history.lines.pop()

    def run_in_half(history: History) -> None:
        half = make_case(((5, 1),), heads=(2, 1), dtype=torch.float16)
        history.note("q, keys and values in float16")
        check_shape(on_dense(attend, half, None), half.q, HALF)

    def run_large_in_half(history: History) -> None:
        case = Case(((5, 1),), (2, 1), 16, 16, None)
        large = _with_large_scores(make_case(case.lengths, heads=case.heads, dtype=torch.float16))
        history.note("q, keys and values in float16, with scores of about 256")
        found = on_dense(attend, large, None)
        compare(found, large, case, IN_FLOAT32, tolerance=HALF_TOLERANCE)

    lesson = find_lesson(_cases(), run, examples=100, seed=seed, shorter=_shorter)
    return lesson or find_mistake(run_in_half) or find_mistake(run_large_in_half)


def _with_large_scores(case: PagedCase) -> PagedCase:
    """Return a case whose scores are large but close together, so that several tokens matter."""
    dense = [(8 + keys / 10, values) for keys, values in case.dense]
    return replace(case, q=8 + case.q, dense=dense)


def _cases() -> "SearchStrategy[Case]":
    from hypothesis import strategies as st

    return st.builds(
        Case,
        st.tuples(st.tuples(st.integers(0, 9), st.integers(1, 9))),
        st.sampled_from([(1, 1), (2, 1), (4, 2), (2, 2)]),
        st.sampled_from([2, 4, 16]),
        st.just(16),
        st.sampled_from([None, None, 1, 3]),
    )


def _shorter(case: Case) -> Iterator[Case]:
    ((cached, new),) = case.lengths
    for fewer in ((cached - 1, new), (cached, new - 1)):
        if fewer[0] >= 0 and fewer[1] >= 1:
            yield replace(case, lengths=(fewer,))
