import pytest
import torch

from minimal_vllm.sampling.logit_rules import (
    add_logit_bias,
    apply_penalties,
    ban_bad_words,
    ban_stop_tokens,
    keep_allowed_tokens,
    keep_grammatical_tokens,
)
from tests.sampling.rows import row

INF = float("inf")


def applied(rule, *rows, logits=(1.0, -1.0, 2.0, 0.0)):
    changed = torch.tensor(logits).repeat(len(rows), 1)
    rule(changed, rows)
    return changed.tolist()


def banned(rule, *rows):
    return [[t for t, x in enumerate(r) if x == -INF] for r in applied(rule, *rows)]


def test_only_allowed_tokens_stay():
    rows = [row(allowed_token_ids=[1, 3]), row(), row(allowed_token_ids=[0, 99])]
    assert banned(keep_allowed_tokens, *rows) == [[0, 2], [], [1, 2, 3]]


def test_a_bad_word_is_banned_when_its_beginning_ends_the_output():
    words = [(3,), (1, 2), (0, 1, 0)]
    assert banned(
        ban_bad_words,
        row(bad_words=words),
        row(bad_words=words, output=[1]),
        row(bad_words=words, output=[0, 1]),
        row(bad_words=words, output=[1, 0]),
        row(bad_words=words, prompt=[0, 1]),
        row(bad_words=words, prompt=[0], output=[1]),
        row(bad_words=[(99,)]),
    ) == [[3], [2, 3], [0, 2, 3], [3], [3], [2, 3], []]


def test_stop_tokens_are_banned_before_min_tokens_only():
    rows = [row(min_tokens=2, stop=[1, 99], output=[0] * n) for n in range(4)]
    assert banned(ban_stop_tokens, *rows, row(stop=[1])) == [[1], [1], [], [], []]


def test_bias_is_added_within_its_bounds():
    rows = [row(), row(logit_bias={0: 1.5, 3: -2.0, 99: 1.0}), row(logit_bias={2: 1e9, 1: -1e9})]
    assert applied(add_logit_bias, *rows) == [
        [1.0, -1.0, 2.0, 0.0],
        [2.5, -1.0, 2.0, -2.0],
        [1.0, -101.0, 102.0, 0.0],
    ]


def test_repetition_penalty_pushes_both_signs_down_once_for_prompt_and_output():
    rows = [
        row(),
        row(repetition_penalty=2.0, prompt=[0, 0], output=[1, 1]),
        row(repetition_penalty=0.5, prompt=[1], output=[2]),
    ]
    assert applied(apply_penalties, *rows) == [
        [1.0, -1.0, 2.0, 0.0],
        [0.5, -2.0, 2.0, 0.0],
        [1.0, -0.5, 4.0, 0.0],
    ]


def test_presence_counts_once_and_frequency_each_time_and_only_the_output():
    history = {"prompt": [0, 3], "output": [2, 1, 2, 2]}
    assert applied(
        apply_penalties,
        row(presence_penalty=0.5, **history),
        row(frequency_penalty=0.5, **history),
        row(presence_penalty=-1.0, frequency_penalty=0.25, repetition_penalty=2.0, **history),
    ) == [
        [1.0, -1.5, 1.5, 0.0],
        [1.0, -1.5, 0.5, 0.0],
        [0.5, -1.25, 1.25, 0.0],
    ]


def test_a_banned_token_stays_banned_under_bias_and_penalties():
    one = row(logit_bias={1: 100.0}, repetition_penalty=0.5, presence_penalty=-2.0, output=[1])
    logits = torch.tensor([[0.0, -INF]])
    add_logit_bias(logits, [one])
    apply_penalties(logits, [one])
    assert logits[0, 1] == -INF


@pytest.mark.parametrize(
    "rule", [keep_allowed_tokens, ban_bad_words, ban_stop_tokens, add_logit_bias, apply_penalties]
)
def test_rows_that_ask_for_nothing_keep_their_very_bits(rule):
    logits = torch.randn(3, 50)
    before = logits.clone()
    rule(logits, [row(output=[1, 2], stop=[3])] * 3)
    assert torch.equal(logits, before)


class EveryThirdToken:
    """A grammar over 10 tokens and a few bits more."""

    def allowed_tokens(self, row):
        return bytearray([0b01001001, 0b11111110])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_grammar_forbids_tokens_of_its_own_row_only(device):
    rows = [row(), row(), row()]
    rows[1].grammar = EveryThirdToken()
    logits = torch.arange(30.0, device=device).view(3, 10)
    expected = logits.clone().cpu()
    expected[1, [1, 2, 4, 5, 7, 8]] = -INF
    keep_grammatical_tokens(logits, rows)
    assert torch.equal(logits.cpu(), expected)
