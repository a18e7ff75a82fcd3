"""A function that forgets its return is told so, whatever its check compares."""

import ast

import pytest

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm_lab.check.lesson import Broken
from minimal_vllm_lab.check.returned import RESULT, no_return_forgotten, results_in, results_of
from minimal_vllm_lab.check.suites import SUITES
from minimal_vllm_lab.learn.exercises import EXERCISES
from tests.lab.learn.mutants import module_with
from tests.lab.learn.solutions import solution

RESULTS = [
    (name, function)
    for name, exercise in EXERCISES.items()
    for function in results_in(exercise.starter, exercise.solutions)
    if function != "mlp"  # two processes take their time; MyEmbedding.forward has them, too
]


class Forgetful(ast.NodeTransformer):
    """Removes the word ``return`` from one function, given as ``Class.method`` or ``function``."""

    def __init__(self, path):
        self._path, self._within = path.split("."), []

    def visit_ClassDef(self, node):
        return self._visit_named(node)

    def visit_FunctionDef(self, node):
        return self._visit_named(node)

    def _visit_named(self, node):
        self._within.append(node.name)
        self.generic_visit(node)
        self._within.pop()
        return node

    def visit_Return(self, node):
        return ast.Expr(node.value) if self._within == self._path else node


@pytest.mark.parametrize(("name", "function"), RESULTS, ids=[each for _, each in RESULTS])
def test_a_forgotten_return_in_an_exercise_is_reported(name, function, tmp_path):
    text = solution(name)
    forgotten = ast.unparse(Forgetful(function).visit(ast.parse(text)))
    module = module_with(name, (text, forgotten), folder=tmp_path)
    lesson = EXERCISES[name].check(module, None)
    assert lesson.rule is RESULT
    method = function.rpartition(".")[2]
    assert lesson.found.startswith(f"{method} returns None ({EXERCISES[name].file_name}, line ")


def test_each_exercise_says_what_its_functions_return():
    without = {name for name in EXERCISES if name not in dict(RESULTS)}
    assert without == {"decode-kernel", "merge"}  # their checks look at the source


class NoPool(BlockPool):
    def allocate(self, count):
        super().allocate(count)

    @property
    def num_free(self):
        super().num_free  # noqa: B018


class NoLRU(LRU):
    def __contains__(self, block):
        super().__contains__(block)


class NoScheduler(Scheduler):
    def schedule(self):
        super().schedule()


@pytest.mark.parametrize(
    ("suite", "part", "name"),
    [
        ("block_pool", NoPool, "num_free"),
        ("eviction_policy", NoLRU, "__contains__"),
        ("scheduler", NoScheduler, "schedule"),
    ],
)
def test_a_forgotten_return_in_a_part_is_reported(suite, part, name):
    lesson = SUITES[suite].check(part)
    assert lesson.rule is RESULT
    assert lesson.found.startswith(f"{name} returns None (test_returned.py, line ")


def test_a_result_that_may_be_none_and_helpers_are_left_alone():
    class Part:
        def may(self) -> int | None: ...

        def is_done(self) -> "Broken": ...

        def _helper(self) -> int: ...

    assert results_of(Part) == {"is_done": "Broken"}


def test_afterward_functions_are_what_they_were():
    before = vars(NoPool)["allocate"], vars(NoPool)["num_free"]
    with no_return_forgotten(NoPool, results_of(BlockPool)):
        with pytest.raises(Broken, match=RESULT.statement):
            NoPool(4, LRU()).allocate(1)
        assert vars(NoPool)["allocate"] is not before[0]
    assert (vars(NoPool)["allocate"], vars(NoPool)["num_free"]) == before


def test_a_watched_property_can_still_be_set():
    class Part:
        @property
        def size(self) -> int:
            return self._size

        @size.setter
        def size(self, size):
            self._size = size

    part = Part()
    with no_return_forgotten(Part, results_of(Part)):
        part.size = 3
        assert part.size == 3
        part.size = None
        with pytest.raises(Broken, match=RESULT.statement):
            part.size  # noqa: B018
