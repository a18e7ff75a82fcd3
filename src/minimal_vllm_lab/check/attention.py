"""What attention must do: over scattered blocks the same as over contiguous keys and values.

A wrong result is compared with those of some well-known mistakes, so that the lesson can name it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minimal_vllm.attention.interface import Attention
from minimal_vllm.attention.reference import attend
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.paged_case import PagedCase, make_case, run_case
from minimal_vllm_lab.check.search import History, find_lesson, shorter_lists

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from minimal_vllm.step.batch import Batch

CHAPTER = "05-paged-attention"
SAME = Rule(
    "Paged attention gives what plain attention gives on contiguous keys and values.",
    "Where the blocks lie, how a prompt was cut into chunks, and who else is in the batch must not "
    "be seen in an answer.",
    CHAPTER,
)
NO_STRANGERS = Rule(
    "Only what belongs to the request is read.",
    "Other blocks hold other requests' keys and values, and the slots behind a request's end hold "
    "anything, even NaN. Masking them is not enough for values: 0 * NaN is NaN.",
    CHAPTER,
)
SHAPE = Rule(
    "The result has the shape and the dtype of q.",
    "The layer multiplies it with its next weights.",
    CHAPTER,
)
UNTOUCHED = Rule(
    "Attention reads q and the cache, and changes neither.",
    "What is in the cache belongs to later steps too, and perhaps to several requests.",
    CHAPTER,
)

TOLERANCE = 0.0001

Attend = Callable[[Tensor, Tensor, Tensor, float, int | None], Tensor]


@dataclass(frozen=True)
class Case:
    """Some requests, and the shape of a layer."""

    lengths: tuple[tuple[int, int], ...]
    """Tokens in the cache, and new ones."""
    heads: tuple[int, int]
    head_dim: int
    block_size: int
    window: int | None


def check_attention(
    make: Callable[[torch.device], Attention],
    *,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
    examples: int = 150,
    only_decodes: bool = False,
) -> Lesson | None:
    """Hold an attention backend to its rules.

    Args:
        make: its class; ``make(device)`` gives a new one.
        device: where it is to run.
        examples: how many batches to try.
        only_decodes: each request has one new token, and no layer has a window.
    """

    def run(case: Case, history: History) -> None:
        on_cpu = make_case(
            case.lengths, heads=case.heads, head_dim=case.head_dim, block_size=case.block_size
        )
        paged = _on(device, on_cpu)
        _describe(case, paged.batch, history)
        before = [tensor.clone() for tensor in (paged.q, *paged.cache)]
        found = run_case(make(device), paged, case.window)
        _check_shape(found, paged.q)
        for tensor, copy in zip((paged.q, *paged.cache), before, strict=True):
            if not torch.equal(tensor.nan_to_num(), copy.nan_to_num()):
                raise Broken(UNTOUCHED, "one of them was changed", "both as they were")
        compare(found.cpu(), on_cpu, case)

    return find_lesson(_cases(only_decodes), run, examples=examples, shorter=_shorter)


def _cases(only_decodes: bool) -> "SearchStrategy[Case]":
    from hypothesis import strategies as st

    new = [1] if only_decodes else [1, 2, 3, 9]
    request = st.tuples(st.sampled_from([0, 1, 3, 4, 5, 8, 70]), st.sampled_from(new))
    return st.builds(
        Case,
        st.lists(request, min_size=1, max_size=4).map(tuple),
        st.sampled_from([(1, 1), (2, 1), (4, 2), (2, 2)]),
        st.sampled_from([16] if only_decodes else [2, 4, 16]),
        st.sampled_from([16] if only_decodes else [4, 1, 2, 16]),
        st.sampled_from([None] if only_decodes else [None, None, None, 1, 3, 20]),
    )


def _shorter(case: Case) -> Iterator[Case]:
    return (replace(case, lengths=tuple(each)) for each in shorter_lists(case.lengths) if each)


def _on(device: torch.device, case: PagedCase) -> PagedCase:
    return replace(
        case,
        q=case.q.to(device),
        k=case.k.to(device),
        v=case.v.to(device),
        cache=type(case.cache)(*(layer.to(device) for layer in case.cache)),
    )


def _describe(case: Case, batch: "Batch", history: History) -> None:
    history.note(
        f"{case.heads[0]} query heads, {case.heads[1]} kv heads, head_dim {case.head_dim}, "
        f"block_size {case.block_size}, window {case.window}"
    )
    for index, (cached, new) in enumerate(case.lengths):
        table = batch.block_tables[index][: -(-(cached + new) // case.block_size)].tolist()
        history.note(f"request {index}: {cached} tokens in the cache, {new} new; blocks {table}")


def _check_shape(found: object, q: Tensor) -> None:
    if not isinstance(found, Tensor):
        raise Broken(SHAPE, f"{type(found).__name__}", "a tensor")
    if (found.shape, found.dtype) != (q.shape, q.dtype):
        raise Broken(
            SHAPE, f"{list(found.shape)} of {found.dtype}", f"{list(q.shape)} of {q.dtype}"
        )


def compare(found: Tensor, paged: PagedCase, case: Case, rule: Rule = SAME) -> None:
    """Hold a result to plain attention.

    Raises:
        Broken: it differs; the mistake is named if it is a well-known one.
    """
    expected = on_dense(attend, paged, case.window)
    error = (found.float() - expected.float()).abs().flatten(1).amax(dim=1)
    wrong = (~(error <= TOLERANCE)).nonzero()  # NaN is wrong too
    if not len(wrong):
        return
    token, hint = int(wrong[0]), _diagnose(found, paged, case.window)
    if error[token].isnan() and rule is SAME:
        raise Broken(NO_STRANGERS, f"{_name(token, case)} gets NaN: something unwritten was read")
    if error[token].isnan():
        raise Broken(rule, f"{_name(token, case)} gets NaN: does it see nothing, not even itself?")
    raise Broken(
        rule,
        f"{_name(token, case)} is off by {error[token]:.3g}{hint}",
        f"an error below {TOLERANCE}: {_shown(expected[token])}",
    )


def _name(token: int, case: Case) -> str:
    for index, (cached, new) in enumerate(case.lengths):
        if token < new:
            return f"request {index}, the token at position {cached + token},"
        token -= new
    raise AssertionError(token)


def _shown(row: Tensor) -> str:
    numbers = ", ".join(f"{number:.2f}" for number in row[0, :4].tolist())
    return f"head 0 gives [{numbers}{', …' if row.shape[-1] > 4 else ''}]"


def on_dense(function: Attend, paged: PagedCase, window: int | None) -> Tensor:
    """What comes out of some attention on the dense keys and values."""
    starts, scale = paged.batch.query_starts.tolist(), paged.q.shape[-1] ** -0.5
    parts = [
        function(paged.q[starts[row] : starts[row + 1]], keys, values, scale, window)
        for row, (keys, values) in enumerate(paged.dense)
    ]
    return torch.cat(parts)


def _diagnose(found: Tensor, paged: PagedCase, window: int | None) -> str:
    names = [
        name
        for name, mistaken in _mistakes(paged.cache.key.shape[2]).items()
        if torch.allclose(
            found.float(), on_dense(mistaken, paged, window).float(), atol=TOLERANCE, equal_nan=True
        )
    ]
    return f".\nJust this comes out if {', or if '.join(names)}." if names else ""


def _mistakes(block_size: int) -> dict[str, Attend]:
    """Well-known mistakes, and attention that makes them."""

    def all_seen(q: Tensor, keys: Tensor, values: Tensor, scale: float, _: int | None) -> Tensor:
        # Queries that stand behind all keys see all of them.
        rows = [attend(row[None], keys, values, scale, None) for row in q]
        return torch.cat(rows)

    def from_zero(q: Tensor, keys: Tensor, values: Tensor, scale: float, w: int | None) -> Tensor:
        rows = [
            attend(row[None], keys[: index + 1], values[: index + 1], scale, w)
            for index, row in enumerate(q)
        ]
        return torch.cat(rows)

    def not_itself(q: Tensor, keys: Tensor, values: Tensor, scale: float, w: int | None) -> Tensor:
        first = len(keys) - len(q)
        rows = [
            attend(row[None], keys[: first + index], values[: first + index], scale, w)
            for index, row in enumerate(q)
        ]
        return torch.cat(rows)

    def full_blocks(q: Tensor, keys: Tensor, values: Tensor, scale: float, w: int | None) -> Tensor:
        full = len(keys) // block_size * block_size
        return attend(q, keys[:full], values[:full], scale, w)

    def interleaved(q: Tensor, keys: Tensor, values: Tensor, scale: float, w: int | None) -> Tensor:
        group = q.shape[1] // keys.shape[1]
        return attend(q, keys.repeat(1, group, 1), values.repeat(1, group, 1), scale, w)

    return {
        "a token also sees those behind it: the causal mask is missing": all_seen,
        "a chunk's tokens are taken to stand at the beginning of their request": from_zero,
        "a token does not see itself": not_itself,
        "the last, partly filled block is left out": full_blocks,
        "query head h uses kv head h % K; it is h // (H / K)": interleaved,
        "the scores are not multiplied by scale": lambda q, k, v, _, w: attend(q, k, v, 1.0, w),
        "the scale is used twice": lambda q, k, v, s, w: attend(q, k, v, s * s, w),
        "the window is ignored": lambda q, k, v, s, _: attend(q, k, v, s, None),
        "the window is one too long": lambda q, k, v, s, w: attend(q, k, v, s, w and w + 1),
        "the window is one too short": lambda q, k, v, s, w: attend(
            q, k, v, s, w and max(w - 1, 1)
        ),
    }
