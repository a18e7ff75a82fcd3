"""Lessons are short, name the line of the user's code, and contain no stack trace."""

import json
from pathlib import Path

import pytest
from hypothesis import strategies as st

from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import (
    RAISES,
    REPEATABLE,
    RETURNS,
    UNWRITTEN,
    find_lesson,
    find_mistake,
    shorter_lists,
)
from tests.markdown import ROOT

RULE = Rule("Numbers are small.", "Large ones are heavy.", "03-paging")


def lesson_of(run):
    return find_lesson(st.lists(st.integers(0, 100)), run, examples=200, shorter=shorter_lists)


def test_nothing_is_found_where_nothing_is_wrong():
    assert lesson_of(lambda case, history: None) is None


def test_the_smallest_case_that_breaks_a_rule_is_reported(monkeypatch):
    monkeypatch.chdir(ROOT)

    def run(case, history):
        for number in case:
            history.call("double", lambda n: 2 * n, number)
            if number > 7:
                raise Broken(RULE, f"{number}", "at most 7")

    lesson = lesson_of(run)
    assert lesson == Lesson(RULE, ["double(8) -> 16"], "8", "at most 7")
    text = "\n".join(lesson.lines())
    assert text.startswith("✗ Numbers are small.\n\n    double(8) -> 16\n\n  expected  at most 7\n")
    assert text.endswith("  read      docs/course/03-paging.md")


def test_the_chapter_to_read_is_a_file_wherever_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    *_, last = Lesson(RULE, [], "8", "at most 7").lines()
    path = Path(last.removeprefix("  read      "))
    assert path.is_absolute()
    assert path.name == "03-paging.md"
    assert path.is_file()


def test_an_exception_is_reported_with_the_line_that_raised_it():
    def divide(number):
        return 1 // number

    lesson = lesson_of(lambda case, history: history.call("divide", divide, len(case)))
    assert lesson.rule is RAISES
    assert lesson.history == ["divide(0)   raises ZeroDivisionError"]
    assert "test_search.py, line " in lesson.found
    assert "in divide:  return 1 // number" in lesson.found
    assert "Traceback" not in "\n".join(lesson.lines())


def test_an_exception_inside_a_library_is_reported_with_the_line_that_called_it():
    def read():
        return json.loads("{")

    lesson = find_mistake(lambda history: history.call("read", read))
    assert 'in read:  return json.loads("{")' in lesson.found


@pytest.mark.parametrize(
    ("error", "rule"), [(NotImplementedError("write it"), UNWRITTEN), (KeyboardInterrupt, RETURNS)]
)
def test_the_search_stops_at_once_if_a_smaller_case_would_reveal_nothing_new(error, rule):
    calls = []

    def run(case, history):
        calls.append(case)
        raise error

    assert lesson_of(run).rule is rule
    assert len(calls) == 1


def test_a_check_that_differs_the_second_time_is_reported_as_not_repeatable():
    calls = []

    def run(case, history):
        calls.append(case)
        if len(calls) % 3 == 0:
            raise Broken(RULE, "9", "")

    assert lesson_of(run).rule is REPEATABLE
