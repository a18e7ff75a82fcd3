import sys
from importlib import import_module
from textwrap import dedent
from typing import Protocol

import pytest

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU, EvictionStrategy
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.plugin import load_class, make_part, part_name


class Greeter(Protocol):
    def greet(self, name: str, *, loud: bool) -> str: ...


FITTING = """
from dataclasses import dataclass

@dataclass
class Polite:
    title: str

    def greet(self, name, loud=False):
        return f"Good evening, {self.title} {name}"
"""


@pytest.fixture
def write(tmp_path):
    """Writes a file of the user's; its path. Nothing of it stays loaded."""
    before = set(sys.modules)

    def write(text, name="a_part_of_mine.py"):
        path = tmp_path / name
        path.write_text(dedent(text))
        return path

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_class_is_found_in_a_file_a_module_or_by_itself(write):
    found = load_class(f"{write(FITTING)}:Polite", Greeter)
    assert found("Dr").greet("Watson", loud=True) == "Good evening, Dr Watson"
    assert load_class("minimal_vllm.cache.eviction:LRU", EvictionStrategy) is LRU
    assert load_class(LRU, EvictionStrategy) is LRU


def test_a_file_that_was_changed_is_read_again(write):
    assert load_class(f"{write(FITTING)}:Polite", Greeter)("Dr").greet("W").startswith("Good")
    path = write(FITTING.replace("Good evening", "Hello"))
    assert load_class(f"{path}:Polite", Greeter)("Dr").greet("W").startswith("Hello")


def test_the_path_of_imports_is_left_as_it_was(write):
    before = list(sys.path)
    load_class(f"{write(FITTING)}:Polite", Greeter)
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("no_such.py:Mine", "there is no file no_such.py"),
        ("no_such_package.mine:Mine", "no_such_package.mine can't be imported"),
        ("minimal_vllm.cache.prefix_hash:LRU", "has no class LRU; it has none"),
        ("minimal_vllm.cache.eviction:MRU", "has no class MRU; it has EvictionStrategy, LRU"),
        ("minimal_vllm", "is not a class: write my_file.py:MyClass"),
        (":LRU", "is not a class"),
    ],
)
def test_a_class_that_is_not_there_is_refused_with_what_is_there(spec, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_class(spec, EvictionStrategy)


def test_a_file_that_can_t_be_run_says_why_and_leaves_no_module(write):
    path = write("1 / 0")
    with pytest.raises(ValueError, match="can't be loaded: ZeroDivisionError: division by zero"):
        load_class(f"{path}:Mine", Greeter)
    assert "a_part_of_mine" not in sys.modules


def test_a_file_can_t_take_the_place_of_a_module_that_others_use(write):
    import queue

    with pytest.raises(ValueError, match="another module is named queue; rename the file"):
        load_class(f"{write(FITTING, 'queue.py')}:Polite", Greeter)
    assert sys.modules["queue"] is queue


def test_a_file_that_was_imported_already_is_that_module(write, monkeypatch):
    path = write(FITTING)
    monkeypatch.syspath_prepend(path.parent)
    imported = import_module(path.stem)
    assert load_class(f"{path}:Polite", Greeter) is imported.Polite


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (
            "pass",
            r"Mine can't take the place of Greeter: it lacks greet\(self, name, \*, loud\)$",
        ),
        ("def greet(self): ...", r"its greet\(self\) should be greet\(self, name, "),
        ("def greet(self, name): ...", r"its greet\(self, name\) should be greet"),
    ],
)
def test_a_missing_method_is_named_with_its_signature(write, body, complaint):
    path = write("class Mine:\n    " + body)
    with pytest.raises(ValueError, match=complaint):
        load_class(f"{path}:Mine", Greeter)


def test_an_abstract_method_that_was_forgotten_is_missed(write):
    path = write("""
        from minimal_vllm.cache.eviction import EvictionStrategy

        class Forgetful(EvictionStrategy):
            def insert(self, block): ...
            def remove(self, block): ...
            def in_order(self): ...
            def __contains__(self, block): ...
            def __len__(self): ...
    """)
    with pytest.raises(ValueError, match=r"it lacks evict\(self\)$"):
        load_class(f"{path}:Forgetful", EvictionStrategy)


def test_a_constructor_that_does_not_fit_is_refused():
    class Demanding(BlockPool):
        def __init__(self, num_blocks, eviction, color): ...

    with pytest.raises(ValueError, match=r"must take \(int, LRU\): missing.*'color'"):
        make_part(Demanding, BlockPool, 4, LRU())


def test_the_built_in_parts_fit_themselves():
    for part in (Scheduler, BlockPool):
        assert load_class(part, part) is part


def test_a_class_is_called_by_the_name_that_finds_it():
    assert load_class(part_name(LRU), EvictionStrategy) is LRU
