"""Checks of the Triton exercises, on the GPU if there is one, otherwise in Triton's interpreter."""

import ast
import inspect
from textwrap import dedent
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minimal_vllm_lab.check.attention import check_attention
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.returned import forgotten_return
from minimal_vllm_lab.check.search import History, find_lesson, find_mistake
from minimal_vllm_lab.learn.softmax_mistakes import MERGES, MISTAKES

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import SearchStrategy

MERGED = Rule(
    "The merged results of all parts equal attention over the whole context.",
    "The split of a context depends on the GPU and on the rest of the batch; an answer must not.",
    "12-shared-prefix",
)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HEADS, DIMS = 2, 4


def check_decode_kernel(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Check ``MyAttention``, which launches the kernel, as an attention backend for decodes.

    Returns:
        A lesson about a broken rule, or None if all hold.
    """
    return find_mistake(lambda _: _check_returns(module.take_keys)) or check_attention(
        module.MyAttention,
        device=DEVICE,
        examples=25,
        seed=seed,
        only_decodes=True,
        plain=True,
        mistakes=MISTAKES,
    )


def check_merge(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Compare ``merge_parts`` with attention over the whole context.

    Returns:
        A lesson about a difference, or None.
    """
    merge_parts: Callable[[Tensor, Tensor], Tensor] = module.merge_parts

    def run(case: tuple[list[int], float], history: History) -> None:
        lengths, size = case
        history.note(f"{HEADS} query heads of {DIMS} dimensions; parts of {lengths} keys")
        history.note(f"standard deviation of the scores: {size:g}")
        generator = torch.Generator().manual_seed(sum(lengths))
        scores = torch.randn(HEADS, sum(lengths), generator=generator) * size  # to the base 2
        values = torch.randn(sum(lengths), DIMS, generator=generator)
        parts = list(
            zip(torch.split(scores, lengths, dim=1), torch.split(values, lengths), strict=True)
        )
        outs = torch.stack([_softmax2(score) @ value for score, value in parts])
        lses = torch.stack([_log2_sum(score) for score, _ in parts])
        for head, lse in enumerate(lses.T):
            history.note(f"lse of the parts, head {head}: {_rounded(lse)}")
        found = merge_parts(_guarded(outs), _guarded(lses)).cpu()
        _compare(found, _softmax2(scores) @ values, outs, lses, lengths)

    return find_mistake(lambda _: _check_returns(module.merge_part)) or find_lesson(
        _cases(), run, examples=40, seed=seed
    )


def _check_returns(kernel: Any) -> None:
    """Check that a Triton function returns something: only its source can tell.

    Raises:
        Broken: it doesn't, although it is written.
    """
    function = kernel.fn
    nodes = list(ast.walk(ast.parse(dedent(inspect.getsource(function)))))
    returns = any(isinstance(node, ast.Return) and node.value is not None for node in nodes)
    is_unwritten = any(isinstance(node, ast.Raise) for node in nodes)
    if not returns and not is_unwritten:
        raise forgotten_return(function, "Softmax")


def _cases() -> "SearchStrategy[tuple[list[int], float]]":
    from hypothesis import strategies as st

    lengths = st.lists(st.sampled_from([1, 2, 7]), min_size=1, max_size=5)
    return st.tuples(lengths, st.sampled_from([1.0, 10.0, 200.0]))


def _softmax2(scores: Tensor) -> Tensor:
    return (scores * torch.log(torch.tensor(2.0))).softmax(-1)


def _log2_sum(scores: Tensor) -> Tensor:
    two = torch.log(torch.tensor(2.0))
    return (scores * two).logsumexp(-1) / two


def _guarded(tensor: Tensor) -> Tensor:
    """Return a tensor on the device, behind which lies a fixed number.

    A kernel that reads too far then computes the same wrong result each time.
    """
    size = tensor.numel()
    memory = torch.full((8 * size,), 100.0, device=DEVICE)
    memory[:size] = tensor.flatten().to(DEVICE)
    return memory[:size].view(tensor.shape)


def _compare(
    found: Tensor, expected: Tensor, outs: Tensor, lses: Tensor, lengths: list[int]
) -> None:
    if torch.allclose(found, expected, atol=1e-4):
        return
    weights = torch.tensor(lengths) / sum(lengths)
    mistakes = {
        "all parts have the same weight, whatever their lse": outs.mean(0),
        "parts are weighted by their number of keys": (outs * weights[:, None, None]).sum(0),
        "only the last part is used (is the new peak returned?)": outs[-1],
        "only the first part is used": outs[0],
        **{name: merge(outs, lses) for name, merge in MERGES.items()},
    }
    names = [name for name, wrong in mistakes.items() if torch.allclose(found, wrong, atol=1e-4)]
    hint = f"\nThis is exactly the result if {', or if '.join(names)}." if names else ""
    if not hint and not bool(found.isfinite().all()):
        hint = (
            "\nIt overflows: relative to the peak, no exponent is above 0. The first peak is -inf."
        )
    head = int((found - expected).abs().amax(dim=1).nan_to_num(torch.inf).argmax())
    raise Broken(
        MERGED, f"head {head} is {_rounded(found[head])}{hint}", f"{_rounded(expected[head])}"
    )


def _rounded(row: Tensor) -> list[float]:
    return [round(number, 4) for number in row.tolist()]
