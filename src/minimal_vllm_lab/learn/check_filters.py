"""Check of the exercise sampler: the tokens that each filter keeps, and the token that is drawn."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from math import inf
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.sampling import filters
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.request import Request
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_lesson

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

NEVER = -inf
CHAPTER = "10-sampling"
OPTIONS: Mapping[str, tuple[float, ...]] = {
    "min_p": (0.0, 0.1, 0.5, 1.0),
    "top_k": (0, 1, 2, 3, 100),
    "top_p": (1.0, 0.5, 0.3, 0.95, 1e-9),
}
KEEPS = {
    "min_p": Rule(
        "keep_min_p removes the tokens less probable than min_p times the most probable one.",
        "Few tokens remain where the model is certain, and many where it is not.",
        CHAPTER,
    ),
    "top_k": Rule(
        "keep_top_k keeps the top_k most probable tokens; ties go to the lowest token ids.",
        "With top_k=1 the choice must be the same as with temperature 0.",
        CHAPTER,
    ),
    "top_p": Rule(
        "keep_top_p keeps the fewest most probable tokens whose probabilities reach top_p.",
        "A token is kept if the more probable ones sum to less than top_p. At least one token is "
        "therefore always kept, and the token that reaches top_p is the last.",
        CHAPTER,
    ),
}
IN_PLACE = Rule(
    "A filter works in place: logits that are kept do not change, nor do rows that don't use it.",
    "The rows of a batch have different parameters.",
    CHAPTER,
)
DRAWS = Rule(
    "draw returns the first token at which the cumulative probability exceeds the uniform number.",
    "Each token is then drawn as often as its probability says, and a token of probability 0 "
    "never.",
    CHAPTER,
)
Case = list[tuple[tuple[float, ...], dict[str, float]]]
"""Rows of a batch: shifted logits, and sampling parameters."""


def check_filters(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Compare the filters with the engine's, and ``draw`` with its definition.

    Returns:
        A lesson about a difference, or None.
    """

    def run(case: Case, history: History) -> None:
        for index, (logits, params) in enumerate(case):
            options = ", ".join(f"{name}={value:g}" for name, value in params.items())
            history.note(f"row {index}: shifted {list(logits)}, {options}")
        for name in OPTIONS:
            _check_filter(module, name, case, history)
        history.lines = history.lines[: len(case)]
        _check_draw(module.draw, case, history)

    return find_lesson(_cases(), run, examples=200, seed=seed)


def _cases() -> "SearchStrategy[Case]":
    from hypothesis import strategies as st

    logit = st.sampled_from([0.0, -1.0, NEVER, -0.5])
    drawn = st.lists(logit, min_size=4, max_size=4).map(lambda rest: (*rest, 0.0))
    # Half of two or four equal tokens have exactly half of the probability, without rounding.
    equal = st.sampled_from([(0.0, 0.0, NEVER, NEVER, NEVER), (0.0, 0.0, NEVER, 0.0, 0.0)])
    logits = st.one_of(drawn, drawn, equal)
    params = st.fixed_dictionaries(
        {name: st.sampled_from(values) for name, values in OPTIONS.items()}
    )
    return st.lists(st.tuples(logits, params), min_size=1, max_size=3)


def _requests(case: Case) -> list[Request]:
    params: list[Any] = [each for _, each in case]
    return [
        Request(str(i), array("i", [0]), 1, SamplingParams(**each), i)
        for i, each in enumerate(params)
    ]


def _check_filter(module: ModuleType, name: str, case: Case, history: History) -> None:
    shifted = torch.tensor([logits for logits, _ in case])
    found, expected = shifted.clone(), shifted.clone()
    requests = _requests(case)
    history.lines = [*history.lines[: len(case)], f"keep_{name}(shifted, rows)"]
    keep: Callable[[Tensor, Sequence[Request]], object] = getattr(module, f"keep_{name}")
    returned: object = keep(found, requests)
    if returned is not None:
        raise Broken(IN_PLACE, f"it returns a {type(returned).__name__}", "nothing is returned")
    getattr(filters, f"keep_{name}")(expected, requests)
    for index in range(len(case)):
        kept, expected_kept = _kept(found[index]), _kept(expected[index])
        if kept != expected_kept:
            raise Broken(KEEPS[name], f"row {index}: tokens {kept} are kept", f"{expected_kept}")
    if not torch.equal(found, expected):
        raise Broken(IN_PLACE, f"{found.tolist()}", f"{expected.tolist()}")


def _kept(row: Tensor) -> list[int]:
    return (row > NEVER).nonzero()[:, 0].tolist()


def _check_draw(draw: Callable[[Tensor, Any], Tensor], case: Case, history: History) -> None:
    shifted = torch.tensor([logits for logits, _ in case])
    probabilities = shifted.double().softmax(-1)
    first = draw(shifted.clone(), np.zeros(len(case)))
    for index, token in enumerate((probabilities > 0).int().argmax(-1).tolist()):
        if int(first[index]) != token:
            history.note("draw(shifted, uniforms=[0, …])")
            raise Broken(
                DRAWS,
                f"row {index}: token {int(first[index])}, of probability 0",
                f"token {token}, the first one that is possible",
            )
    for token in range(shifted.shape[1]):
        # The middle of the token's interval within [0, 1), where rounding does not matter.
        before = probabilities[:, :token].sum(dim=-1)
        middle = (before + probabilities[:, token] / 2).numpy()
        drawn = draw(shifted.clone(), middle)
        for index in range(len(case)):
            if probabilities[index, token] > 0 and int(drawn[index]) != token:
                history.note(f"draw(shifted, uniforms={np.round(middle, 3).tolist()})")
                shares = [round(each, 3) for each in probabilities[index].tolist()]
                raise Broken(
                    DRAWS,
                    f"row {index}: token {int(drawn[index])}",
                    f"token {token}: the probabilities are {shares}",
                )
