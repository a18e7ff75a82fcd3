"""Broken guessers are found, and the rule that they break is named."""

import random
from typing import ClassVar

import pytest

from minimal_vllm.speculation.interface import Placeholders
from minimal_vllm.speculation.ngram import NgramGuesser
from minimal_vllm_lab.check import guesser as rules
from minimal_vllm_lab.check.guesser import check_guesser
from minimal_vllm_lab.check.search import RAISES, REPEATABLE, UNWRITTEN


class Ngram(NgramGuesser):
    def __init__(self):
        super().__init__(2, 4)


class LastToken:
    """Guess that the last token is repeated: a guesser without state."""

    def propose(self, entries, counts):
        pairs = zip(entries, counts, strict=True)
        return [[entry.request.token_ids[-1]] * count for entry, count in pairs]

    def forget(self, request):
        pass


class TooMany(LastToken):
    def propose(self, entries, counts):
        return super().propose(entries, [count + 1 for count in counts])


class AlwaysThree(LastToken):
    def propose(self, entries, counts):
        return super().propose(entries, [3] * len(counts))


class NoEmptyRows(Ngram):
    def propose(self, entries, counts):
        return [row for row in super().propose(entries, counts) if row]


class OneRowTooMany(LastToken):
    def propose(self, entries, counts):
        return [*super().propose(entries, counts), []]


class RowsBackwards(LastToken):
    def propose(self, entries, counts):
        return super().propose(entries, counts)[::-1]


class PadsWithMinusOne(Ngram):
    def propose(self, entries, counts):
        rows = super().propose(entries, counts)
        return [row + [-1] * (count - len(row)) for row, count in zip(rows, counts, strict=True)]


class BeyondTheVocabulary(LastToken):
    def propose(self, entries, counts):
        return [[token + 4090 for token in row] for row in super().propose(entries, counts)]


class Floats(LastToken):
    def propose(self, entries, counts):
        return [[float(token) for token in row] for row in super().propose(entries, counts)]


class Text(LastToken):
    def propose(self, entries, counts):
        return [["the"] * count for count in counts]


class NoneWithoutAGuess(Ngram):
    def propose(self, entries, counts):
        return [row or None for row in super().propose(entries, counts)]


class Generators(LastToken):
    def propose(self, entries, counts):
        return [iter(row) for row in super().propose(entries, counts)]


class ReturnsNothing(LastToken):
    def propose(self, entries, counts):
        super().propose(entries, counts)


class AppendsGuesses(LastToken):
    def propose(self, entries, counts):
        rows = super().propose(entries, counts)
        for entry, row in zip(entries, rows, strict=True):
            entry.request.token_ids.extend(row)
        return rows


class PutsGuessesIntoTheEntry(LastToken):
    def propose(self, entries, counts):
        rows = super().propose(entries, counts)
        for entry, row in zip(entries, rows, strict=True):
            entry.guesses = row
        return rows


class EmptiesCounts(LastToken):
    def propose(self, entries, counts):
        return [[entry.request.token_ids[-1]] * counts.pop(0) for entry in entries]


class SortsEntries(LastToken):
    def propose(self, entries, counts):
        rows = super().propose(entries, counts)
        entries.sort(key=lambda entry: -entry.request.arrival)
        return rows


class Follower:
    """Guess what followed the last token before, from a dictionary that is filled on the way."""

    def __init__(self):
        self.known = {}

    def key(self, _index, request):
        return request

    def propose(self, entries, counts):
        rows = []
        for index, (entry, count) in enumerate(zip(entries, counts, strict=True)):
            tokens = entry.request.token_ids
            seen, followers = self.known.setdefault(self.key(index, entry.request), [0, {}])
            for position in range(max(seen, 1), len(tokens)):
                followers[tokens[position - 1]] = tokens[position]
            self.known[self.key(index, entry.request)][0] = len(tokens)
            row = []
            while len(row) < count and (row or tokens)[-1] in followers:
                row.append(followers[(row or tokens)[-1]])
            rows.append(row)
        return rows

    def forget(self, request):
        self.known.pop(request, None)


class SharesOneDictionary(Follower):
    def key(self, _index, _request):
        return "all"


class RemembersByIndex(Follower):
    def key(self, index, _request):
        return index

    def forget(self, request):
        self.known.clear()


class RemembersById(Follower):
    def key(self, _index, request):
        return request.request_id


class NeverForgets(Follower):
    def forget(self, request):
        pass


class ForgetsAll(Follower):
    """Forget what other requests had too, of which only new tokens are looked at later."""

    def forget(self, request):
        super().forget(request)
        for each in self.known.values():
            each[1].clear()


class ForgetsOnlyWhatIsKnown(Follower):
    def forget(self, request):
        del self.known[request]


class KeepsItsStateInTheClass(Follower):
    shared: ClassVar = {}

    def __init__(self):
        self.known = self.shared

    def key(self, _index, _request):
        return "all"


class GuessesAtRandom(LastToken):
    def propose(self, entries, counts):
        return [[random.randrange(4096) for _ in range(count)] for count in counts]


class NeedsAnEntry(LastToken):
    def propose(self, entries, counts):
        return super().propose(entries, counts) if max(counts) >= 0 else []


class NeedsThreeTokens(LastToken):
    def propose(self, entries, counts):
        return [[entry.request.token_ids[-3]] for entry in entries]


class Unwritten(LastToken):
    def propose(self, entries, counts):
        raise NotImplementedError("write it")


class ListsTheEnded(Ngram):
    def __init__(self):
        super().__init__()
        self.ended = []

    def forget(self, request):
        super().forget(request)
        self.ended.append(request)


MUTANTS = {
    TooMany: rules.AT_MOST,
    AlwaysThree: rules.AT_MOST,
    NoEmptyRows: rules.ONE_ROW_EACH,
    OneRowTooMany: rules.ONE_ROW_EACH,
    RowsBackwards: rules.AT_MOST,
    PadsWithMinusOne: rules.TOKENS,
    BeyondTheVocabulary: rules.TOKENS,
    Floats: rules.TOKENS,
    Text: rules.TOKENS,
    NoneWithoutAGuess: rules.ONE_ROW_EACH,
    Generators: rules.ONE_ROW_EACH,
    ReturnsNothing: rules.ONE_ROW_EACH,
    AppendsGuesses: rules.READS_ONLY,
    PutsGuessesIntoTheEntry: rules.READS_ONLY,
    EmptiesCounts: rules.READS_ONLY,
    SortsEntries: rules.READS_ONLY,
    SharesOneDictionary: rules.OWN_TOKENS,
    RemembersByIndex: rules.OWN_TOKENS,
    RemembersById: rules.FORGETS,
    NeverForgets: rules.FORGETS,
    ForgetsAll: rules.OWN_TOKENS,
    ForgetsOnlyWhatIsKnown: RAISES,
    KeepsItsStateInTheClass: REPEATABLE,
    GuessesAtRandom: REPEATABLE,
    NeedsAnEntry: RAISES,
    NeedsThreeTokens: RAISES,
    Unwritten: UNWRITTEN,
    ListsTheEnded: rules.FORGETS,
}


@pytest.mark.parametrize("guesser", [Ngram, LastToken, Follower, Placeholders])
def test_guessers_that_may_be_as_wrong_as_they_like_pass(guesser):
    assert check_guesser(guesser) is None


@pytest.mark.breaks("check guesser")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mistake_is_found_and_named(mutant):
    lesson = check_guesser(mutant)
    assert lesson is not None
    assert lesson.rule is MUTANTS[mutant], "\n".join(lesson.lines())


def test_the_shortest_history_is_shown():
    lesson = check_guesser(RemembersByIndex)
    proposals = [line for line in lesson.history if ".propose(" in line]
    assert len(proposals) <= 4
    assert "as if it were alone" in lesson.expected
