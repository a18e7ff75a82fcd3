"""Each check is tried with at least twenty mistakes, so that no exercise comes with fewer."""

from collections import Counter
from contextlib import redirect_stdout
from io import StringIO

import pytest

from minimal_vllm_lab.check.suites import SUITES
from minimal_vllm_lab.learn.exercises import EXERCISES
from tests.markdown import ROOT

ENOUGH = 20
CHECKS = [*EXERCISES, *(f"check {name}" for name in SUITES)]
FOLDERS = [str(ROOT / "tests" / "lab" / name) for name in ("check", "learn")]


class Counts:
    """Plugin of pytest: counts the tests that say what they break."""

    def __init__(self):
        self.of = Counter()

    def pytest_collection_finish(self, session):
        for item in session.items:
            for marker in item.iter_markers("breaks"):
                self.of.update(marker.args)


@pytest.fixture(scope="module")
def counts():
    """Number of tests with a mistake each, by exercise and by kind of part, as in ``CHECKS``."""
    plugin = Counts()
    arguments = ["--collect-only", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    with redirect_stdout(StringIO()):  # what the inner run reports
        pytest.main([*FOLDERS, *arguments], plugins=[plugin])
    return plugin.of


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_is_tried_with_twenty_mistakes(name, counts):
    assert counts[name] >= ENOUGH, f"mark tests of {name} with pytest.mark.breaks"


def test_only_what_exists_is_broken(counts):
    assert set(counts) == set(CHECKS)
