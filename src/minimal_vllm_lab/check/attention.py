"""Check an attention backend against plain attention on contiguous keys and values.

A wrong result is also compared with the results of well-known mistakes, so that the lesson can name
the mistake.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minimal_vllm.attention.interface import Attention, AttentionOptions
from minimal_vllm.attention.reference import attend
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.paged_case import PagedCase, make_case, run_case
from minimal_vllm_lab.check.search import History, find_lesson, shorter_lists

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from minimal_vllm.step.batch import Batch

CHAPTER = "05-paged-attention"
SAME = Rule(
    "Paged attention gives the same result as plain attention on contiguous keys and values.",
    "The result must not depend on where the blocks are, how a prompt was split into chunks, or "
    "which other requests are in the batch.",
    CHAPTER,
)
OWN_SLOTS_ONLY = Rule(
    "Attention reads only the slots that hold the request's own tokens.",
    "Other blocks hold keys and values of other requests, and the slots after a request's last "
    "token hold arbitrary numbers, even NaN. Masking the scores is not enough, because the values "
    "are read too: 0 * NaN is NaN.",
    CHAPTER,
)
SHAPE = Rule(
    "The result has the shape and the dtype of q.",
    "The next projection of the layer takes it as input.",
    CHAPTER,
)
UNTOUCHED = Rule(
    "Attention changes neither q nor the cache.",
    "Later steps read the cache too, and several requests may share its blocks.",
    CHAPTER,
)

TOLERANCE = 0.0001

Attend = Callable[[Tensor, Tensor, Tensor, float, int | None], Tensor]


@dataclass(frozen=True)
class Case:
    """The requests of a batch, and the shape of a layer."""

    lengths: tuple[tuple[int, int], ...]
    """Number of cached and of new tokens, per request."""
    heads: tuple[int, int]
    """Number of query heads and of kv heads."""
    head_dim: int
    block_size: int
    window: int | None
    """Sliding window in tokens. None: full causal attention."""
    softcap: float | None = None
    """Bound of the scores. None: none."""
    has_sinks: bool = False
    """Whether each query head has a sink."""

    @property
    def options(self) -> AttentionOptions:
        """Options that attention is called with."""
        sinks = torch.linspace(-1, 2, self.heads[0]) if self.has_sinks else None
        return AttentionOptions(self.head_dim**-0.5, self.window, self.softcap, sinks)


def check_attention(
    make: Callable[[torch.device], Attention],
    *,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
    examples: int = 150,
    seed: int | None = None,
    only_decodes: bool = False,
    plain: bool = False,
) -> Lesson | None:
    """Check an attention backend, and return a lesson about a broken rule, or None if all hold.

    Args:
        make: the backend's class. ``make(device)`` must return a new backend.
        device: the device to run on.
        examples: number of random batches to try.
        seed: seed of the random cases. Default: the same cases in every run.
        only_decodes: restrict the batches to one new token per request, and to layers without a
            sliding window.
        plain: restrict the layers to those without softcap and sinks.
    """

    def run(case: Case, history: History) -> None:
        on_cpu = make_case(
            case.lengths, heads=case.heads, head_dim=case.head_dim, block_size=case.block_size
        )
        paged = _on(device, on_cpu)
        _describe(case, paged.batch, history)
        before = [tensor.clone() for tensor in (paged.q, *paged.cache)]
        found = run_case(make(device), paged, _options_on(device, case))
        _check_shape(found, paged.q)
        for tensor, copy in zip((paged.q, *paged.cache), before, strict=True):
            if not torch.equal(tensor.nan_to_num(), copy.nan_to_num()):
                raise Broken(UNTOUCHED, "q or the cache was changed", "both unchanged")
        compare(found.cpu(), on_cpu, case)

    return find_lesson(
        _cases(only_decodes, plain), run, examples=examples, seed=seed, shorter=_shorter
    )


def _cases(only_decodes: bool, plain: bool) -> "SearchStrategy[Case]":
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
        st.sampled_from([None] if plain else [None, None, None, 0.5]),
        st.sampled_from([False] if plain else [False, False, False, True]),
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


def _options_on(device: torch.device, case: Case) -> AttentionOptions:
    options = case.options
    sinks = None if options.sinks is None else options.sinks.to(device)
    return replace(options, sinks=sinks)


def _describe(case: Case, batch: "Batch", history: History) -> None:
    history.note(
        f"{case.heads[0]} query heads, {case.heads[1]} kv heads, head_dim {case.head_dim}, "
        f"block_size {case.block_size}, window {case.window}, softcap {case.softcap}, "
        f"{'a sink per head' if case.has_sinks else 'no sinks'}"
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
    """Compare a result with plain attention.

    Args:
        found: the result, ``[T, H, D]``.
        paged: the inputs, on the CPU.
        case: the lengths and the window.
        rule: the rule to report if the result differs.

    Raises:
        Broken: the result differs. The message names the mistake if it is a well-known one.
    """

    def right(q: Tensor, keys: Tensor, values: Tensor, scale: float, w: int | None) -> Tensor:
        return attend(q, keys, values, scale, w, case.softcap, case.options.sinks)

    expected = on_dense(right, paged, case.window)
    error = (found.float() - expected.float()).abs().flatten(1).amax(dim=1)
    wrong = (~(error <= TOLERANCE)).nonzero()  # NaN is wrong too
    if not len(wrong):
        return
    token, hint = int(wrong[0]), _diagnose(found, paged, case)
    if error[token].isnan() and rule is SAME:
        raise Broken(OWN_SLOTS_ONLY, f"{_name(token, case)} gets NaN: an unwritten slot was read")
    if error[token].isnan():
        raise Broken(rule, f"{_name(token, case)} gets NaN: can it not even attend to itself?")
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
    return f"head 0 is [{numbers}{', …' if row.shape[-1] > 4 else ''}]"


def on_dense(function: Attend, paged: PagedCase, window: int | None) -> Tensor:
    """Apply an attention function to each request's contiguous keys and values.

    Args:
        function: called with ``(q, keys, values, scale, window)`` for each request.
        paged: the inputs.
        window: the sliding window.

    Returns:
        ``[T, H, D]``, the results of all requests, concatenated.
    """
    starts, scale = paged.batch.query_starts.tolist(), paged.q.shape[-1] ** -0.5
    results = [
        function(paged.q[starts[row] : starts[row + 1]], keys, values, scale, window)
        for row, (keys, values) in enumerate(paged.dense)
    ]
    return torch.cat(results)


def _diagnose(found: Tensor, paged: PagedCase, case: Case) -> str:
    names = [
        name
        for name, mistaken in _mistakes(case).items()
        if torch.allclose(
            found.float(),
            on_dense(mistaken, paged, case.window).float(),
            atol=TOLERANCE,
            equal_nan=True,
        )
    ]
    return f".\nThis is exactly the result if {', or if '.join(names)}." if names else ""


def _mistakes(case: Case) -> dict[str, Attend]:
    """Return well-known mistakes: descriptions, and attention functions that make the mistakes."""

    def no_mask(q: Tensor, keys: Tensor, values: Tensor, scale: float, _: int | None) -> Tensor:
        # A query at the last position attends to all keys.
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
        full = len(keys) // case.block_size * case.block_size
        return attend(q, keys[:full], values[:full], scale, w)

    def interleaved(q: Tensor, keys: Tensor, values: Tensor, scale: float, w: int | None) -> Tensor:
        group = q.shape[1] // keys.shape[1]
        return attend(q, keys.repeat(1, group, 1), values.repeat(1, group, 1), scale, w)

    def no_softcap(q: Tensor, keys: Tensor, values: Tensor, scale: float, w: int | None) -> Tensor:
        return attend(q, keys, values, scale, w, None, case.options.sinks)

    def no_sinks(q: Tensor, keys: Tensor, values: Tensor, scale: float, w: int | None) -> Tensor:
        return attend(q, keys, values, scale, w, case.softcap)

    return {
        "the softcap is ignored": no_softcap,
        "the sinks are ignored": no_sinks,
        "a token also attends to later tokens: the causal mask is missing": no_mask,
        "the positions of a chunk are counted from the start of the request": from_zero,
        "a token does not attend to itself": not_itself,
        "the last, partly filled block is left out": full_blocks,
        "query head h uses kv head h % K instead of h // (H / K)": interleaved,
        "the scores are not multiplied by scale": lambda q, k, v, _, w: attend(q, k, v, 1.0, w),
        "the scale is applied twice": lambda q, k, v, s, w: attend(q, k, v, s * s, w),
        "the window is ignored": lambda q, k, v, s, _: attend(q, k, v, s, None),
        "the window is one token too long": lambda q, k, v, s, w: attend(q, k, v, s, w and w + 1),
        "the window is one token too short": lambda q, k, v, s, w: attend(
            q, k, v, s, w and max(w - 1, 1)
        ),
    }
