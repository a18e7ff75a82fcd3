"""Each mistake in the division of a model between two ranks is found, and for its real reason."""

from multiprocessing import get_context

import pytest

from minimal_vllm.plugin import load_file
from minimal_vllm_lab.check.search import RAISES
from minimal_vllm_lab.learn import check_ranks as rules
from minimal_vllm_lab.learn import two_processes
from tests.lab.learn.solutions import solution


@pytest.fixture(autouse=True)
def second_ranks_start_at_once(monkeypatch):
    """Fork each second rank from one process that has imported PyTorch."""
    context = get_context("forkserver")
    context.set_forkserver_preload([rules.__name__])
    monkeypatch.setattr(two_processes, "get_context", lambda _: context)


# The text of the solution that is replaced, and by what.
WRONG_RANGES = [
    ("rank // readers * own", "rank * own"),
    ("rank // readers * own", "rank % (ranks // readers) * own"),
    ("rank // readers * own", "(ranks - 1 - rank) // readers * own"),
    ("own * ranks // whole", "1"),
    ("own * ranks // whole", "-(-own * ranks // whole)"),
    ("first += whole", "first += own * ranks"),
    ("first += whole", "first += own"),
    ("first += whole", "pass"),
    ("first + min(begin + own, whole)", "first + begin + own"),
    ("range(first + begin, first + min(begin + own, whole))", "range(first + rank, whole, ranks)"),
    ("for whole, own in zip(whole_sizes, own_sizes, strict=True)", "for whole, own in ()"),
]
WRONG_LOOKUPS = [
    ("WHOLE", ".masked_fill_(elsewhere[:, None], 0)", ""),
    ("WHOLE", "input_ids - self._first", "input_ids % len(self.weight)"),
    ("WHOLE", "(rows < 0) | (rows >= len(self.weight))", "rows != rows.clamp(0, 0)"),
    ("WHOLE", "masked_fill_(elsewhere[:, None], 0)", "masked_fill_(elsewhere[:, None], 1)"),
    ("WHOLE", "computed(self._ranks.add(", "((lambda part: part)("),
    (
        "SAME",
        "computed(self._ranks.add(",
        "((lambda part: self._ranks.add(part) + 1e-6 * self._first)(",
    ),
    ("ONE_SUM", "input_ids - self._first", "self._ranks.add(input_ids) // 2 - self._first"),
]
WRONG_MLPS = [
    (
        "WHOLE",
        "ranks.add((silu(x @ gate.T) * (x @ up.T)) @ down.T) + bias",
        "ranks.add((silu(x @ gate.T) * (x @ up.T)) @ down.T + bias)",
    ),
    ("WHOLE", ") + bias", ")"),
    ("WHOLE", ") + bias", ") / ranks.count + bias"),
    ("WHOLE", "silu(x @ gate.T) * (x @ up.T)", "silu(ranks.add(x @ gate.T)) * (x @ up.T)"),
    ("WHOLE", "return ranks.add(", "return ("),
    ("ONE_SUM", "return ranks.add(", "ranks.add(x @ gate.T); return ranks.add("),
    ("ONE_SUM", ") + bias", ") + ranks.add(bias) / ranks.count"),
]


def lesson(tmp_path, *replaced):
    text = solution("two-ranks")
    for old, new in replaced:
        assert old in text, old
        text = text.replace(old, new)
    path = tmp_path / "two_ranks.py"
    path.write_text(text)
    return rules.check_ranks(load_file(path))


@pytest.mark.breaks("two-ranks")
@pytest.mark.parametrize(("old", "new"), WRONG_RANGES)
def test_wrong_ranges_are_found(old, new, tmp_path):
    assert lesson(tmp_path, (old, new)).rule is rules.PARTS


@pytest.mark.breaks("two-ranks")
@pytest.mark.parametrize(("rule", "old", "new"), WRONG_LOOKUPS + WRONG_MLPS)
def test_a_wrong_lookup_or_mlp_is_found(rule, old, new, tmp_path):
    assert lesson(tmp_path, (old, new)).rule is getattr(rules, rule)


LONELY = ("return ranks.add(", "return (ranks.add if ranks.index == 0 else abs)(")
OTHER_SHAPES = ("@ down.T) + bias", "@ down.T[:, : 1 + ranks.index]) + bias")
FAILS_THERE = ("return ranks.add(", "1 / (1 - ranks.index); return ranks.add(")


def test_a_rank_that_adds_alone_is_found_and_does_not_hang(tmp_path):
    assert lesson(tmp_path, LONELY).rule == two_processes.TOGETHER


def test_ranks_that_add_different_shapes_are_found(tmp_path):
    assert lesson(tmp_path, OTHER_SHAPES).rule == two_processes.ALIKE


def test_an_exception_of_the_other_rank_is_reported_with_its_line(tmp_path):
    found = lesson(tmp_path, FAILS_THERE)
    assert found.rule == RAISES
    assert found.found.startswith("in rank 1: ZeroDivisionError")
    assert "two_ranks.py, line" in found.found
