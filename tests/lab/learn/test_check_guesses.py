"""Each mistake in n-gram lookup, and in what is kept of guesses, is found for its real reason."""

import pytest

from minimal_vllm_lab.check.search import RAISES
from minimal_vllm_lab.learn import check_guesses as rules
from tests.lab.learn.mutants import module_with

LENGTH = "if length > longest:"
END = "if place == len(guesses) or row[0] != guesses[place]:\n            return place + 1"

# The text of the solution that is replaced, and by what.
WRONG_INDICES = [
    ("earlier.append(latest.get(gram, NOWHERE))", "earlier.append(NOWHERE)"),
    ("latest[gram] = place", "latest.setdefault(gram, place)"),
    ("latest[gram] = place", "latest[gram] = place - shortest"),
    ("latest[gram] = place", "latest[gram] = place - 1"),
    ("range(first + shortest, len(tokens))", "range(first + shortest, len(tokens) + 1)"),
    ("range(first + shortest, len(tokens))", "range(first + shortest + 1, len(tokens))"),
    ("range(first + shortest, len(tokens))", "range(first + shortest, len(tokens) - 1)"),
    ("first = len(earlier)", "first = 0"),
    ("shortest, latest, earlier = self._shortest", "shortest, latest, earlier = self._longest"),
    ("width = shortest * ITEM", "width = shortest"),
    (
        "earlier.append(latest.get(gram, NOWHERE))\n            latest[gram] = place",
        "latest[gram] = place\n            earlier.append(latest.get(gram, NOWHERE))",
    ),
]
WRONG_LOOKUPS = [
    (LENGTH, "if best == NOWHERE:"),
    (LENGTH, "if length >= longest:"),
    ("range(MAX_PLACES)", "range(1)"),
    ("return best", "return place"),
    ("return best", "return best - self._shortest"),
    ("return best", "return tokens[best]"),
    ("return best", "return None if best == NOWHERE else best"),
    ("tokens[-self._shortest :]", "tokens[: self._shortest]"),
    ("self._earlier[place - self._shortest]", "self._earlier[place - self._shortest - 1]"),
    ("place == NOWHERE or longest == self._longest", "place == NOWHERE or longest"),
    ("best, longest = place, length", "best = place"),
]
WRONG_LIMITS = [
    ("range(MAX_PLACES)", "range(MAX_PLACES - 1)"),
    ("range(MAX_PLACES)", "range(MAX_PLACES + 1)"),
    ("range(MAX_PLACES)", "range(len(tokens))"),
]
SLOW = [
    ("        first = len(earlier)", "        latest.clear(); del earlier[:]; first = 0"),
    ("raw = tokens[first:].tobytes()", "raw = array('i', tokens.tolist()[first:]).tobytes()"),
    ("        best, longest = NOWHERE, 0", "        best, longest = NOWHERE, 0 * sum(tokens)"),
]
WRONG_COUNTS = [
    ("return place + 1", "return place"),
    ("return place + 1", "return len(rows)"),
    ("return place + 1", "return place + 2"),
    ("if not row:\n            return place\n", "if not row:\n            continue\n"),
    ("if not row:\n            return place\n", "if not row:\n            return place + 1\n"),
    ("if not row:\n            return place\n", "if not row:\n            return 0\n"),
    ("if not row:\n            return place\n", "pass\n"),
    ("row[0] != guesses[place]", "row != guesses[place]"),
    ("row[0] != guesses[place]", "row[0] not in guesses"),
    (END, "if place == len(guesses):\n            return place"),
]
RAISING = [
    ("place == len(guesses) or ", ""),
    ("self._earlier[place - self._shortest]", "self._earlier[place]"),
]
MUTANTS = [
    *(("MATCH", *each) for each in WRONG_INDICES + WRONG_LOOKUPS),
    *(("PLACES", *each) for each in WRONG_LIMITS),
    *(("FLAT", *each) for each in SLOW),
    *(("KEPT", *each) for each in WRONG_COUNTS),
]


@pytest.mark.breaks("guess-and-check")
@pytest.mark.parametrize(("rule", "old", "new"), MUTANTS)
def test_a_wrong_lookup_or_count_is_found(rule, old, new):
    lesson = rules.check_guesses(module_with("guess-and-check", (old, new)))
    assert lesson.rule is getattr(rules, rule), "\n".join(lesson.lines())


@pytest.mark.parametrize(("old", "new"), RAISING)
def test_an_exception_is_shown_with_the_call_that_raised_it(old, new):
    lesson = rules.check_guesses(module_with("guess-and-check", (old, new)))
    assert lesson.rule is RAISES
