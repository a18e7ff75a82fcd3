"""Check an attention backend against plain attention on contiguous keys and values.

A wrong result is also compared with the results of well-known mistakes, so that the lesson can name
the mistake.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minimal_vllm.attention.interface import Attention, AttentionOptions
from minimal_vllm.attention.paged import write_to_cache
from minimal_vllm.attention.reference import attend
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm_lab.check.attention_mistakes import Attend, well_known
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.paged_case import PagedCase, make_case
from minimal_vllm_lab.check.search import History, find_lesson, find_mistake, shorter_lists

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
OVERFLOWS = Rule(
    "Large scores do not overflow.",
    "exp(89) is more than float32 can hold, and scores of that size occur. A softmax is therefore "
    "computed relative to the largest score, which becomes 0.",
    CHAPTER,
)
A_NUMBER = Rule(
    "The result is a number.",
    "-inf - -inf, 0 / 0 and inf / inf are NaN, and a sum with NaN in it is NaN. A softmax without "
    "its highest score, or one that has seen no score yet, runs into one of them.",
    CHAPTER,
)
EACH_BATCH = Rule(
    "Each step is computed with the plan of its own batch.",
    "An engine makes one backend, and calls plan once per step. What is kept of an earlier batch "
    "belongs to other requests.",
    CHAPTER,
)
UNTOUCHED = Rule(
    "Attention changes neither q nor the cache.",
    "Later steps read the cache too, and several requests may share its blocks.",
    CHAPTER,
)

TOLERANCE = 0.0001
LARGE = 60.0
"""Factor with which some scores exceed 89."""


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
    size: float = 1.0
    """Factor of the queries, and so of the scores."""

    @property
    def options(self) -> AttentionOptions:
        """Options that attention is called with."""
        sinks = torch.linspace(-1, 2, self.heads[0]) if self.has_sinks else None
        return AttentionOptions(self.head_dim**-0.5, self.window, self.softcap, sinks)


DECODES = [
    Case(lengths, heads, 16, 16, None, size=size)
    for size in (1.0, LARGE)
    for lengths, heads in (
        (((0, 1),), (1, 1)),
        (((3, 1),), (1, 1)),
        (((40, 1),), (1, 1)),
        (((70, 1),), (2, 1)),
        (((3, 1), (0, 1)), (4, 2)),
    )
]
"""The smallest batches of decodes in which the most common mistakes show: one key, one tile of
keys, several tiles, several heads, and two requests."""


def check_attention(
    make: Callable[[torch.device], Attention],
    *,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
    examples: int = 150,
    seed: int | None = None,
    only_decodes: bool = False,
    plain: bool = False,
    mistakes: Mapping[str, Attend] = MappingProxyType({}),
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
        mistakes: attention functions with mistakes to name beside the well-known ones.
    """

    def run(case: Case, history: History) -> None:
        on_cpu = make_case(
            case.lengths, heads=case.heads, head_dim=case.head_dim, block_size=case.block_size
        )
        on_cpu.q *= case.size
        paged = _on(device, on_cpu)
        _describe(case, paged.batch, history)
        found = _run(make(device), paged, _options_on(device, case))
        check_shape(found, paged.q)
        try:
            compare(found.cpu(), on_cpu, case, mistakes=mistakes)
        except Broken as broken:
            if broken.rule is OWN_SLOTS_ONLY:
                _check_with_zeros(make(device), paged, _options_on(device, case))
            raise

    lesson = find_lesson(
        _cases(only_decodes, plain),
        run,
        examples=examples,
        seed=seed,
        shorter=_shorter,
        known=DECODES if only_decodes else (),
    )
    return (
        lesson
        or find_mistake(lambda history: _check_two_steps(make(device), device, history))
        or find_mistake(lambda history: _check_half(make(device), device, history))
    )


def _run(backend: Attention, paged: PagedCase, options: AttentionOptions) -> Tensor:
    """Write the new keys and values to a copy of the cache, and return what attention returns.

    Raises:
        Broken: q or the cache was changed.
    """
    cache = LayerCache(*(layer.clone() for layer in paged.cache))
    attention = backend.plan(paged.batch)
    write_to_cache(paged.k, paged.v, cache, attention.slots)
    before = [tensor.clone() for tensor in (paged.q, *cache)]
    found = attention(paged.q, paged.k, paged.v, cache, options)
    for name, tensor, copy in zip(
        ("q", "the keys", "the values"), (paged.q, *cache), before, strict=True
    ):
        if not torch.equal(tensor.nan_to_num(), copy.nan_to_num()):
            raise Broken(UNTOUCHED, f"{name} changed", "q and the cache unchanged")
    return found


def _check_with_zeros(backend: Attention, paged: PagedCase, options: AttentionOptions) -> None:
    """Check that a result which is NaN is a number if all unused memory holds zeros.

    Raises:
        Broken: it is NaN even so: no unwritten slot is to blame.
    """
    zeros = LayerCache(*(layer.nan_to_num() for layer in paged.cache))
    if _run(backend, replace(paged, cache=zeros), options).isnan().any():
        raise Broken(A_NUMBER, "NaN, also if all unused memory holds zeros")


def _check_two_steps(backend: Attention, device: torch.device, history: History) -> None:
    """Check the second step of a backend, with the requests of the first in another order."""
    for step, lengths in enumerate((((40, 1), (3, 1), (8, 1)), ((3, 1), (8, 1), (40, 1)))):
        case = Case(lengths, (2, 1), 16, 16, None)
        on_cpu = make_case(lengths, heads=case.heads, head_dim=16, seed=step)
        paged = _on(device, on_cpu)
        _describe(case, paged.batch, history)
        found = _run(backend, paged, _options_on(device, case))
        if step == 1:
            check_shape(found, paged.q, EACH_BATCH)
            compare(found.cpu(), on_cpu, case, EACH_BATCH)


def _check_half(backend: Attention, device: torch.device, history: History) -> None:
    """Check the dtype of a result in half precision, which real models are in."""
    case = Case(((5, 1), (2, 1)), (2, 1), 16, 16, None)
    on_cpu = make_case(case.lengths, heads=case.heads, head_dim=16, dtype=torch.float16)
    paged = _on(device, on_cpu)
    _describe(case, paged.batch, history)
    history.note("q, keys and values in float16")
    check_shape(_run(backend, paged, _options_on(device, case)), paged.q)


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
        st.sampled_from([1.0, 1.0, 1.0, LARGE]),
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
        f"query heads: {case.heads[0]}, kv heads: {case.heads[1]}, head_dim {case.head_dim}, "
        f"block_size {case.block_size}, window {case.window}, softcap {case.softcap}, "
        f"{'a sink per head' if case.has_sinks else 'no sinks'}"
        f"{', large scores' if case.size > 1 else ''}"
    )
    for index, (cached, new) in enumerate(case.lengths):
        table = batch.block_tables[index][: -(-(cached + new) // case.block_size)].tolist()
        history.note(f"request {index}: {cached} tokens in the cache, {new} new; blocks {table}")


def check_shape(found: object, q: Tensor, rule: Rule = SHAPE) -> None:
    """Check that a result is a tensor with the shape and the dtype of the queries.

    Raises:
        Broken: it is not.
    """
    if not isinstance(found, Tensor):
        raise Broken(rule, f"{type(found).__name__}", "a tensor")
    if (found.shape, found.dtype) != (q.shape, q.dtype):
        raise Broken(rule, f"{list(found.shape)} of {found.dtype}", f"{list(q.shape)} of {q.dtype}")


def compare(
    found: Tensor,
    paged: PagedCase,
    case: Case,
    rule: Rule = SAME,
    mistakes: Mapping[str, Attend] = MappingProxyType({}),
    tolerance: float = TOLERANCE,
) -> None:
    """Compare a result with plain attention.

    Args:
        found: the result, ``[T, H, D]``.
        paged: the inputs, on the CPU.
        case: the lengths and the window.
        rule: the rule to report if the result differs.
        mistakes: attention functions with mistakes to name beside the well-known ones.
        tolerance: largest error of a number that is accepted.

    Raises:
        Broken: the result differs. The message names the mistake if it is a well-known one.
    """

    def right(q: Tensor, keys: Tensor, values: Tensor, scale: float, w: int | None) -> Tensor:
        return attend(q, keys, values, scale, w, case.softcap, case.options.sinks)

    expected = on_dense(right, paged, case.window)
    error_of_head = (found.float() - expected.float()).abs().amax(dim=2)
    error = error_of_head.amax(dim=1)
    wrong = (~(error <= tolerance)).nonzero()  # NaN is wrong too
    if not len(wrong):
        return
    token = int(wrong[0])
    hint = _diagnose(found, paged, case, {**well_known(case.block_size, case.options), **mistakes})
    if case.size > 1 and not error[token].isfinite():
        number = found[token][~found[token].isfinite()][0]
        raise Broken(OVERFLOWS, f"{_name(token, case)} is {number:g}, but only if scores are large")
    if error[token].isnan() and rule is SAME:
        raise Broken(OWN_SLOTS_ONLY, f"{_name(token, case)} gets NaN: an unwritten slot was read")
    if error[token].isnan():
        raise Broken(rule, f"{_name(token, case)} gets NaN: can it not even attend to itself?")
    head = int(error_of_head[token].argmax())
    raise Broken(
        rule,
        f"{_shown(found[token], head)}, off by {error[token]:.3g}: {_name(token, case)}{hint}",
        f"{_shown(expected[token], head)} (±{tolerance:g})",
    )


def _name(token: int, case: Case) -> str:
    for index, (cached, new) in enumerate(case.lengths):
        if token < new:
            request = f"request {index}, " if len(case.lengths) > 1 else ""
            return f"{request}the token at position {cached + token}"
        token -= new
    raise AssertionError(token)


def _shown(row: Tensor, head: int) -> str:
    numbers = ", ".join(f"{number:.4f}" for number in row[head, :4].tolist())
    return f"head {head} is [{numbers}{', …' if row.shape[-1] > 4 else ''}]"


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


def _diagnose(found: Tensor, paged: PagedCase, case: Case, mistakes: Mapping[str, Attend]) -> str:
    # In float32, so that a result that is merely rounded is not taken for one of the mistakes.
    paged = replace(
        paged,
        q=paged.q.float(),
        dense=[(keys.float(), values.float()) for keys, values in paged.dense],
    )
    names = [
        name
        for name, mistaken in mistakes.items()
        if torch.allclose(
            found.float(),
            on_dense(mistaken, paged, case.window).float(),
            atol=TOLERANCE,
            equal_nan=True,
        )
    ]
    return f".\nThis is exactly the result if {', or if '.join(names)}." if names else ""
