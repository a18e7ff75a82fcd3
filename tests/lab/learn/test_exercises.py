"""Each exercise is solved by the engine's own code, and not by its starter."""

import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
from click.testing import CliRunner

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cli.main import main
from minimal_vllm_lab.learn.exercises import EXERCISES
from minimal_vllm_lab.learn.progress import FILE_NAME
from tests.lab.learn.solutions import solution
from tests.markdown import read


def needs(name):
    lacks_triton = EXERCISES[name].needs_triton and find_spec("triton") is None
    return pytest.param(name, marks=pytest.mark.skipif(lacks_triton, reason="needs Triton"))


def test_git_and_the_linter_ignore_the_learner_s_files():
    ignored = read(".gitignore").splitlines()
    written = [FILE_NAME, *(exercise.file_name for exercise in EXERCISES.values())]
    assert {f"/{name}" for name in written} <= set(ignored)


ALL = [needs(name) for name in EXERCISES]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield lambda *arguments: CliRunner().invoke(main, ["learn", *arguments])
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("name", ALL)
def test_a_starter_fails_its_check_and_says_what_to_write(name, run, tmp_path):
    assert run("start", name).exit_code == 0
    path = tmp_path / EXERCISES[name].file_name
    assert f"minimal-vllm learn check {name}" in path.read_text()
    finished = run("check", name)
    assert finished.exit_code == 1, finished.output
    assert "There is something left to write" in finished.output
    assert f"{path.name}, line " in finished.output


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_has_three_hints_and_a_starter_without_answers(name):
    exercise = EXERCISES[name]
    assert len(exercise.hints) == 3
    assert all(len(line) <= 104 for hint in exercise.hints for line in hint.splitlines())
    assert "NotImplementedError(" not in exercise.starter
    assert 1 <= exercise.points <= 3


@pytest.mark.parametrize("name", ["bytes-and-flops", "allocate-and-free"])
def test_a_solution_passes_with_another_seed(name):
    module = ModuleType(name)
    exec(solution(name), vars(module))
    assert EXERCISES[name].check(module, 1) is None


ONE_OWNER = """
def allocate(self, count):
    if count > len(self._free):
        raise ValueError(count)
    blocks = [self._free.pop() for _ in range(count)]
    for block in blocks:
        self._references[block] = 1
    return blocks

def release(self, blocks):
    for block in blocks:
        self._references[block] = 0
        self._free.append(block)
"""


def test_allocate_and_free_needs_nothing_of_the_prefix_cache():
    exercise, module = EXERCISES["allocate-and-free"], ModuleType("mine")
    exec(ONE_OWNER, vars(module))
    module.MyPool = type("MyPool", (BlockPool,), {**vars(module)})
    assert exercise.check(module, None) is None


@pytest.mark.parametrize("name", ALL)
def test_the_engine_s_own_code_passes_the_check(name, run, tmp_path):
    (tmp_path / EXERCISES[name].file_name).write_text(solution(name))
    finished = run("check", name)
    assert finished.exit_code == 0, finished.output
    assert f"solves {name}" in finished.output
