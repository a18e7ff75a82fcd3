"""Each mistake in freeing what a window left behind is found, and for its real reason."""

from types import SimpleNamespace

import pytest

from minimal_vllm.cache.layer_groups import NO_BLOCK, first_seen_block
from minimal_vllm.engine.block_manager import BlockManager
from minimal_vllm.step.request import Status
from minimal_vllm_lab.check import search
from minimal_vllm_lab.learn import check_windows as rules
from tests.lab.learn.mutants import module_with


def without_window_counts_one_less(position, window, block_size):
    return first_seen_block(position, window and window + 1, block_size)


def rounds_up(position, window, block_size):
    return -(-max(position // block_size * block_size - (window or 10**6) + 1, 0) // block_size)


def from_the_token_itself(position, window, block_size):
    return 0 if window is None else max(position - window + 1, 0) // block_size


class Blocks(BlockManager):
    """The engine's own, with steps that mutants replace."""

    ends_early = False

    def next_token(self, entry):
        return entry.start + entry.num_new

    def entries(self, entry):
        request, size = entry.request, self.config.block_size
        return sorted(
            index
            for group, window in self.windows.items()
            for index in range(group, len(request.block_table), self.num_groups)
            if index // self.num_groups < first_seen_block(self.next_token(entry), window, size)
            and request.block_table[index] != NO_BLOCK
        )

    def release_passed(self, entry):
        if entry.request.status is Status.RUNNING:
            passed = self.entries(entry)
            entry.passed_blocks = [entry.request.block_table[index] for index in passed]
            self.let_go(entry.request, passed, entry.passed_blocks)

    def let_go(self, request, passed, blocks):
        self.pool.release(blocks)
        for index in passed:
            request.block_table[index] = NO_BLOCK


class ReleasesNothing(Blocks):
    def entries(self, entry):
        return []


class ReleasesOneOnly(Blocks):
    """Enough for a decode, not for a prompt that moves by many blocks."""

    def entries(self, entry):
        return super().entries(entry)[:1]


class ReleasesWhatTheStepSaw(Blocks):
    """A block too late: as of the step's first token."""

    def next_token(self, entry):
        return entry.start


class ReleasesABlockTooEarly(Blocks):
    def next_token(self, entry):
        return entry.start + entry.num_new + self.config.block_size


class ReleasesInAllGroups(Blocks):
    """Also where no window is."""

    def entries(self, entry):
        rows = {index // self.num_groups for index in super().entries(entry)}
        table = entry.request.block_table
        return [
            index
            for index in range(len(table))
            if index // self.num_groups in rows and table[index] != NO_BLOCK
        ]


class KeepsTheEntries(Blocks):
    def let_go(self, request, passed, blocks):
        self.pool.release(blocks)


class OnlyForgetsTheBlocks(Blocks):
    def let_go(self, request, passed, blocks):
        for index in passed:
            request.block_table[index] = NO_BLOCK


class RemovesTheEntries(Blocks):
    def let_go(self, request, passed, blocks):
        self.pool.release(blocks)
        for index in reversed(passed):
            del request.block_table[index]


class NotesNothing(Blocks):
    def release_passed(self, entry):
        super().release_passed(entry)
        entry.passed_blocks = ()


class ForgetsThatRequestsEnd(Blocks):
    def release_passed(self, entry):
        passed = self.passed_even_if_ended(entry)
        entry.passed_blocks = [entry.request.block_table[index] for index in passed]
        self.let_go(entry.request, passed, entry.passed_blocks)

    def passed_even_if_ended(self, entry):
        size, found = self.config.block_size, []
        for group, window in self.windows.items():
            for row in range(first_seen_block(self.next_token(entry), window, size)):
                index = row * self.num_groups + group
                if entry.request.block_table[index] != NO_BLOCK:
                    found.append(index)
        return sorted(found)


def lesson(blocks=Blocks, first_seen=first_seen_block):
    return rules.check_windows(SimpleNamespace(MyBlocks=blocks, first_seen_block=first_seen))


MUTANTS = {
    ReleasesNothing: rules.RELEASED,
    ReleasesOneOnly: rules.RELEASED,
    ReleasesWhatTheStepSaw: rules.RELEASED,
    ReleasesABlockTooEarly: rules.SEES,
    ReleasesInAllGroups: rules.SEES,
    KeepsTheEntries: rules.OWNERS,
    OnlyForgetsTheBlocks: rules.OWNERS,
    RemovesTheEntries: rules.IN_PLACE,
    NotesNothing: rules.NOTED,
    ForgetsThatRequestsEnd: search.RAISES,
}


def test_the_same_without_a_mistake_passes():
    assert lesson() is None


@pytest.mark.breaks("free-behind")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mistake_is_found_and_shown_in_few_lines(mutant):
    found = lesson(mutant)
    assert found is not None
    assert found.rule == MUTANTS[mutant], found
    assert len(found.history) < 16


@pytest.mark.breaks("free-behind")
@pytest.mark.parametrize(
    "first_seen", [without_window_counts_one_less, rounds_up, from_the_token_itself]
)
def test_a_wrong_beginning_of_the_window_is_found(first_seen):
    assert lesson(first_seen=first_seen).rule == rules.FIRST_SEEN


# The text of the solution that is replaced, and by what.
WRONG_TEXTS = [
    ("SEES", "entry.num_new - ", "entry.num_new + self.config.block_size - "),
    ("SEES", "index = (first_seen - 1)", "index = first_seen"),
    ("RELEASED", "index = (first_seen - 1)", "index = (first_seen - 2)"),
    ("RELEASED", "self.windows.items():", "list(self.windows.items())[:1]:"),
    ("NOTED", "in sorted(passed)]", "in sorted(passed, reverse=True)]"),
    ("FIRST_SEEN", "return max(0, position // block_size - ", "return (position // block_size - "),
    ("FIRST_SEEN", "position // block_size", "position"),
]


@pytest.mark.breaks("free-behind")
@pytest.mark.parametrize(("rule", "old", "new"), WRONG_TEXTS)
def test_a_mistake_in_the_text_is_found(rule, old, new):
    found = rules.check_windows(module_with("free-behind", (old, new)))
    assert found.rule is getattr(rules, rule), "\n".join(found.lines())
