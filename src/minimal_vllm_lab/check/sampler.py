"""Check a sampler: it must follow each row's parameters, and treat each row independently.

The sampled tokens need not be the engine's, because they depend on its random numbers. They must be
possible, and as frequent as their probabilities.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from minimal_vllm.sampling.row import SamplingRow
from minimal_vllm.sampling.sampler import Sampled, Sampler, sample
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.request import Request
from minimal_vllm_lab.check.fake_model import FakeGrammar
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_lesson, find_mistake, shorter_lists

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

CHAPTER = "10-sampling"
INF = float("inf")
GREEDY = Rule(
    "With temperature 0 the most probable token is chosen, and the first one in case of ties.",
    "The same prompt must give the same answer on every machine.",
    CHAPTER,
)
POSSIBLE = Rule(
    "Only tokens that pass temperature, min_p, top_k and top_p are sampled.",
    "These filters cut off the long tail of meaningless tokens. Each of them is improbable, but "
    "together they would be sampled often.",
    CHAPTER,
)
ROW_INDEPENDENT = Rule(
    "A row's token depends neither on the other rows nor on its index in the batch.",
    "An answer must not depend on the other requests in the batch. A seed gives the same tokens "
    "alone and in a large batch.",
    CHAPTER,
)
REPRODUCIBLE = Rule(
    "The same logits, seed and output position give the same token again.",
    "Tokens must not change after a preemption, and users rely on a seed to reproduce an answer.",
    CHAPTER,
)
FREQUENCIES = Rule(
    "Tokens are sampled as often as their probabilities say.",
    "A biased sampler changes what the model says, and no single answer reveals it.",
    CHAPTER,
)
NEW_DRAW = Rule(
    "Another seed, or another position in the output, gives a new random draw.",
    "Otherwise all answers to a prompt would be the same, or one random choice would repeat "
    "throughout a text.",
    CHAPTER,
)
OPTIONS_APPLIED = Rule(
    "Penalties, biases, bans, grammars and log-probabilities are those that the row asks for.",
    "They are part of the API. Whatever the API accepts must take effect.",
    CHAPTER,
)
ONE_EACH = Rule(
    "Each row of logits gives a list of one token; only a row with NaN logits gives none.",
    "The scheduler appends the tokens to the requests that the rows belong to, in the same order.",
    CHAPTER,
)
NAN_ROW = Rule(
    "A row with NaN logits gives an empty list of tokens, and does not affect other rows.",
    "Its request ends with an error. The other requests must not notice.",
    CHAPTER,
)

RANDOM: tuple[Mapping[str, Any], ...] = (
    {},
    {"top_k": 1},
    {"top_k": 2},
    {"top_p": 0.5},
    {"min_p": 0.3},
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 3, "top_p": 0.8, "min_p": 0.05},
)
GREEDILY: tuple[Mapping[str, Any], ...] = (
    {},
    {"logit_bias": {1: 3.0}},
    {"allowed_token_ids": [0, 2]},
    {"repetition_penalty": 3.0},
    {"presence_penalty": 2.0, "frequency_penalty": 0.5},
    {"frequency_penalty": 2.0},
    {"stop_token_ids": [1], "min_tokens": 5},
    {"logprobs": 2},
)
RULES = ("", "", "grammar", "bad word")
"""Rules for greedy rows that are not sampling parameters."""
LOGITS = ((0.0, 2.0, 0.5, 1.0), (0.0, 1.0, 1.0, 0.0), (3.0, -INF, 0.0, -1.0), (0.0, 0.0, 0.0, 0.0))
DRAWS = 1000


@dataclass(frozen=True)
class Row:
    """One row of logits, with the sampling parameters and the seed of its request."""

    logits: tuple[float, ...]
    params: Mapping[str, Any]
    seed: int
    rule: str = ""
    """``"grammar"`` allows tokens 0 and 2 only, ``"bad word"`` bans token 1 after another 1."""

    def request(self, num_output: int = 1) -> Request:
        """Return a request with one prompt token and ``num_output`` output tokens."""
        tokens = array("i", [3] + [1] * num_output)
        params = SamplingParams(max_tokens=None, **self.params)
        # One token is pending: the one to be sampled.
        return Request(
            "r",
            tokens,
            1,
            params,
            0,
            seed=self.seed,
            num_pending_tokens=1,
            grammar=_EvenTokens() if self.rule == "grammar" else None,
            bad_word_ids=((1, 1),) if self.rule == "bad word" else (),
        )

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.params.items())
        numbers = ", ".join(f"{number:g}" for number in self.logits)
        rule = f", with a {self.rule}" if self.rule else ""
        return f"logits [{numbers}]; seed={self.seed}{options and f', {options}'}{rule}"


class _EvenTokens(FakeGrammar):
    """A grammar that allows the tokens 0 and 2."""

    def allowed_tokens(self, row: SamplingRow, /) -> bytearray:  # noqa: ARG002
        """Return the bit mask of the two tokens."""
        return bytearray([0b0101])


def check_sampler(make: Callable[[], Sampler], *, examples: int = 80) -> Lesson | None:
    """Check a sampler, and return a lesson about a broken rule, or None if all hold.

    Args:
        make: the sampler's class. ``make()`` must return a new sampler.
        examples: number of random batches to try.
    """

    def run(rows: list[Row], history: History) -> None:
        _check_rows(make(), rows, history)

    def shorter(rows: list[Row]) -> Iterator[list[Row]]:
        return (each for each in shorter_lists(rows) if each)

    lesson = find_lesson(_cases(), run, examples=examples, shorter=shorter, known=_known_cases())
    return (
        lesson
        or find_mistake(lambda history: _check_draws(make(), history))
        or find_mistake(lambda history: _check_broken_row(make(), history))
    )


def _known_cases() -> list[list[Row]]:
    """Return one row for each option and rule that changes the choice of a greedy row."""
    options = [Row(LOGITS[0], {"temperature": 0, **params}, 0) for params in GREEDILY]
    return [[row] for row in (*options, *(replace(options[0], rule=rule) for rule in RULES))]


def _cases() -> "SearchStrategy[list[Row]]":
    from hypothesis import strategies as st

    greedy = [{"temperature": 0, **params} for params in GREEDILY]
    seeds = st.sampled_from([0, 1, 2, 3, 12345])
    logits = st.sampled_from(LOGITS)
    row = st.one_of(
        st.builds(Row, logits, st.sampled_from(greedy), seeds, st.sampled_from(RULES)),
        st.builds(Row, logits, st.sampled_from(RANDOM), seeds),
    )
    return st.lists(row, min_size=1, max_size=5)


def _draw(sampler: Sampler, rows: Sequence[Row], num_output: int = 1) -> list[int]:
    """Return the one token that each row gives."""
    tokens = _sample(sampler, rows, num_output).tokens
    if [len(each) for each in tokens] != [1] * len(rows):
        raise Broken(ONE_EACH, f"tokens={tokens}", f"{len(rows)} lists of one token")
    kinds = {type(token).__name__ for (token,) in tokens} - {"int"}
    if kinds:
        raise Broken(ONE_EACH, f"a token is a {', '.join(kinds)}", "an int")
    return [token for (token,) in tokens]


def _sample(sampler: Sampler, rows: Sequence[Row], num_output: int = 1) -> Sampled:
    logits = torch.tensor([row.logits for row in rows])
    sampled = sampler(logits, [row.request(num_output) for row in rows])
    if not isinstance(sampled, Sampled):
        raise Broken(ONE_EACH, f"a {type(sampled).__name__}", "a Sampled")
    return sampled


def _check_rows(sampler: Sampler, rows: list[Row], history: History) -> None:
    for index, row in enumerate(rows):
        history.note(f"row {index}: {row}")
    history.note("sampler(logits, rows).tokens")
    together = _draw(sampler, rows)
    history.lines[-1] += f" -> {[[token] for token in together]}"
    for index, row in enumerate(rows):
        name = f"row {index} gets token {together[index]}"
        if row.params.get("temperature") == 0:
            _check_greedy(row, together[index], name)
        elif plain_probabilities(row.logits, row.request().params)[together[index]] == 0:
            possible = plain_probabilities(row.logits, row.request().params).nonzero()[0]
            raise Broken(POSSIBLE, name, f"one of {possible.tolist()}")
    if _draw(sampler, rows) != together:
        raise Broken(REPRODUCIBLE, f"{together} first, other tokens the second time")
    for index, row in enumerate(rows):
        (alone,) = _draw(sampler, [row])
        if alone != together[index]:
            raise Broken(
                ROW_INDEPENDENT, f"row {index} gets {together[index]} in the batch, {alone} alone"
            )
    _check_logprobs(sampler, rows)


def _check_greedy(row: Row, token: int, name: str) -> None:
    (expected,) = _draw(sample, [row])
    if token != expected:
        has_no_options = len(row.params) == 1 and not row.rule
        raise Broken(GREEDY if has_no_options else OPTIONS_APPLIED, name, f"token {expected}")


def _check_logprobs(sampler: Sampler, rows: list[Row]) -> None:
    found = _sample(sampler, rows).logprobs
    for index, row in enumerate(rows):
        if "logprobs" not in row.params:
            if found[index]:
                raise Broken(OPTIONS_APPLIED, f"log-probabilities for row {index}", "None")
            continue
        (expected,) = _sample(sample, [row]).logprobs
        if found[index] != expected:
            raise Broken(OPTIONS_APPLIED, f"row {index}: {found[index]}", f"{expected}")


def _check_broken_row(sampler: Sampler, history: History) -> None:
    rows = [Row(logits, {}, 5) for logits in LOGITS]
    expected = [[], *([token] for token in _draw(sampler, rows))]
    rows.insert(0, Row((float("nan"),) * len(LOGITS[0]), {}, 5))
    for index, row in enumerate(rows):
        history.note(f"row {index}: {row}")
    found = [list(tokens) for tokens in _sample(sampler, rows).tokens]
    if found != expected:
        raise Broken(NAN_ROW, f"tokens={found}", f"tokens={expected}")


def _check_draws(sampler: Sampler, history: History) -> None:
    """Compare token frequencies over many seeds with the expected probabilities.

    The seeds are fixed, so the verdict on a sampler never changes.
    """
    for params in RANDOM:
        row = Row((0.0, 2.0, 0.5, 1.0, -1.0, 1.7), params, 0)
        history.lines = [f"{row}; the same with every other seed below {DRAWS}"]
        tokens = _draw(sampler, [replace(row, seed=seed) for seed in range(DRAWS)])
        for seed, token in enumerate(tokens[:10]):
            if _draw(sampler, [replace(row, seed=seed)]) != [token]:
                raise Broken(
                    ROW_INDEPENDENT, f"seed {seed} gives one token in the batch, another alone"
                )
        expected = plain_probabilities(row.logits, row.request().params)
        found = np.bincount(tokens, minlength=len(expected)) / DRAWS
        impossible = np.flatnonzero((found > 0) & (expected == 0)).tolist()
        if impossible:
            possible = np.flatnonzero(expected).tolist()
            raise Broken(POSSIBLE, f"tokens {impossible} among others", f"one of {possible}")
        # A correct sampler is further off than five standard deviations once in a million times.
        allowed = 5 * np.sqrt(expected * (1 - expected) / DRAWS)
        if (abs(found - expected) > allowed).any():
            raise Broken(
                FREQUENCIES, f"frequencies {_rounded(found)}", f"about {_rounded(expected)}"
            )
    row = Row((0.0,) * 50, {}, 7)
    history.lines = [f"one row of 50 equal logits, seed={row.seed}, at 60 output positions"]
    distinct = {_draw(sampler, [row], num_output)[0] for num_output in range(60)}
    if len(distinct) < 20:
        raise Broken(NEW_DRAW, f"{len(distinct)} different tokens", "at least 20")


def _rounded(shares: "npt.NDArray[np.float64]") -> list[float]:
    return [round(float(share), 3) for share in shares]


def plain_probabilities(
    logits: Sequence[float] | torch.Tensor, params: SamplingParams
) -> "npt.NDArray[np.float64]":
    """Return the probabilities after temperature, min_p, top_k and top_p, computed token by token.

    Args:
        logits: ``[V]``.
        params: the sampling parameters. The temperature must be positive.

    Returns:
        float64 ``[V]``. Filtered tokens have probability 0.
    """
    scaled = np.asarray(logits, np.float64) / params.temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    probs[probs < params.min_p * probs.max()] = 0
    order = sorted(range(len(probs)), key=lambda i: (-probs[i], i))
    if params.top_k > 0:
        probs[order[params.top_k :]] = 0
    total, sum_before = probs.sum(), 0.0
    for token in order:
        if sum_before >= params.top_p * total:
            probs[token] = 0
        sum_before += probs[token]
    share: npt.NDArray[np.float64] = probs / probs.sum()
    return share
