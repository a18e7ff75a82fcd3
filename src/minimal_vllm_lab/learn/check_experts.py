"""Check of the exercise experts: the router's choice, and the grouped products."""

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_lesson

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

CHAPTER = "17-experts"
CHOSEN = Rule(
    "choose_experts returns the experts with the highest logits, the best one first.",
    "The model was trained with this choice. Another expert has learned something else.",
    CHAPTER,
)
WEIGHTS = Rule(
    "A weight is the softmax over all experts, in float32, scaled only if it is normalized.",
    "Mixtral scales the weights of the chosen experts to sum to 1. Qwen's configuration says "
    "whether to do so.",
    CHAPTER,
)
ONCE = Rule(
    "Each expert that has tokens is called once, with all of its tokens and no others.",
    "A step is bound by reading weights. An expert that is called once is read once.",
    CHAPTER,
)
SUM = Rule(
    "A token's result is the sum of its experts' results, each times its weight.",
    "The weights already say how much each expert counts, so results are added, not averaged, and "
    "each token gets a result of its own, whatever other tokens are in the step.",
    CHAPTER,
)


@dataclass(frozen=True)
class Case:
    """Sizes of a mixture of experts."""

    num_tokens: int
    num_experts: int
    per_token: int
    normalized: bool
    in_16_bits: bool
    all_alike: bool
    """Whether all tokens choose the same experts."""


def check_experts(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Compare the router and the mixture with their definitions.

    Returns:
        A lesson about a difference, or None.
    """

    def run(case: Case, history: History) -> None:
        history.note(
            f"{case.num_tokens} tokens, {case.per_token} of {case.num_experts} experts each"
        )
        logits, x = _numbers(case)
        order = logits.double().argsort(dim=-1, descending=True)[:, : case.per_token]
        _check_choice(module, case, logits, order, history)
        _check_mixture(module, x, order, history)

    return find_lesson(_cases(), run, examples=60, seed=seed)


def _cases() -> "SearchStrategy[Case]":
    from hypothesis import strategies as st

    sizes = st.integers(1, 6).flatmap(
        lambda count: st.tuples(st.just(count), st.integers(1, min(count, 3)))
    )
    return st.builds(
        lambda tokens, size, *flags: Case(tokens, *size, *flags),
        st.integers(1, 7),
        sizes,
        st.booleans(),
        st.booleans(),
        st.booleans(),
    )


def _numbers(case: Case) -> tuple[Tensor, Tensor]:
    """Return logits without ties, and tokens."""
    generator = torch.Generator().manual_seed(case.num_tokens)
    shape = (case.num_tokens, case.num_experts)
    logits = torch.rand(shape, generator=generator).argsort(dim=-1) * 0.75 - 1
    if case.all_alike:
        logits = logits[:1].expand(shape).contiguous()
    x = torch.randn(case.num_tokens, 4, generator=generator)
    return (logits.bfloat16(), x.bfloat16()) if case.in_16_bits else (logits, x)


def _check_choice(
    module: ModuleType, case: Case, logits: Tensor, order: Tensor, history: History
) -> None:
    history.note(f"choose_experts({logits.dtype} logits, normalized={case.normalized})")
    experts, weights = module.choose_experts(logits.clone(), case.per_token, case.normalized)
    if experts.tolist() != order.tolist():
        raise Broken(CHOSEN, f"{experts.tolist()}", f"{order.tolist()} of {logits.tolist()}")
    expected = logits.float().softmax(-1).gather(1, order)
    if case.normalized:
        expected = expected / expected.sum(-1, keepdim=True)
    if weights.dtype != torch.float32 or not torch.allclose(weights, expected, atol=1e-5):
        raise Broken(WEIGHTS, f"{weights.dtype} {weights.tolist()}", f"{expected.tolist()}")


def _check_mixture(module: ModuleType, x: Tensor, experts: Tensor, history: History) -> None:
    history.note(f"mix_experts(x, experts={experts.tolist()}, …)")
    weights = torch.linspace(0.2, 0.9, experts.numel()).view(experts.shape)
    calls: dict[int, Tensor] = {}

    def expert(index: int, rows: Tensor) -> Tensor:
        if int(index) in calls:
            raise Broken(ONCE, f"expert {index} is called twice", "one call")
        calls[int(index)] = rows
        _check_tokens(int(index), rows, x[(experts == int(index)).any(dim=1)])
        return (int(index) + 1) * rows + int(index)

    found = module.mix_experts(x.clone(), experts.clone(), weights.clone(), expert)
    for index in sorted(set(experts.flatten().tolist()) - set(calls)):
        _check_tokens(index, x[:0], x[(experts == index).any(dim=1)])
    results = (experts[:, :, None] + 1) * x[:, None, :] + experts[:, :, None]
    whole = (weights[:, :, None] * results).sum(dim=1).to(x.dtype)
    tolerance = 1e-4 if x.dtype == torch.float32 else 0.05
    is_alike = found.dtype == x.dtype and found.shape == x.shape
    if not is_alike or not torch.allclose(found, whole, rtol=tolerance, atol=tolerance):
        raise Broken(
            SUM, f"{found.dtype} {found.tolist()}", f"{x.dtype}, as the tokens: {whole.tolist()}"
        )


def _check_tokens(index: int, rows: Tensor, expected: Tensor) -> None:
    if not len(expected):
        raise Broken(
            ONCE, f"expert {index} is called with {len(rows)} tokens", "no call: none chose it"
        )
    if sorted(rows.tolist()) != sorted(expected.tolist()):
        raise Broken(
            ONCE, f"expert {index} gets {len(rows)} tokens", f"{len(expected)}, which chose it"
        )
