import sys

import pytest
from click.testing import CliRunner

from minimal_vllm.cli.main import main

WRONG = """
from minimal_vllm.cache.block_pool import BlockPool

class MyPool(BlockPool):
    def release(self, blocks):
        super().release(blocks)
        self._free.append(blocks[0])
"""


def run(*arguments):
    return CliRunner().invoke(main, ["check", *arguments])


def test_a_correct_class_passes():
    result = run("--eviction-policy=minimal_vllm.cache.eviction:LRU")
    assert result.exit_code == 0
    assert "✓ minimal_vllm.cache.eviction:LRU does everything that the engine" in result.output


def test_a_wrong_class_gets_a_lesson_and_no_files_are_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_pool_of_mine.py").write_text(WRONG)
    result = run(
        "--block-pool=a_pool_of_mine.py:MyPool", "--eviction-policy=minimal_vllm.cache.eviction:LRU"
    )
    del sys.modules["a_pool_of_mine"]
    assert result.exit_code == 1
    assert "pool.release([0])" in result.output
    assert "✓ minimal_vllm.cache.eviction:LRU" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["a_pool_of_mine.py"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Name a class"),
        (["--scheduler=no_such.py:Mine"], "there is no file no_such.py"),
        (["--guesser=minimal_vllm.cache.eviction:LRU"], "it lacks propose(self, entries, counts)"),
        (["--sampler=minimal_vllm.cache.eviction:LRU"], "it lacks __call__"),
        (["--scheduler=fcfs"], "is not a class"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments, complaint):
    result = run(*arguments)
    assert result.exit_code == 2
    assert complaint in result.output


def test_without_hypothesis_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    result = run("--eviction-policy=minimal_vllm.cache.eviction:LRU")
    assert result.exit_code == 2
    assert "pip install 'minimal-vllm[learn]'" in result.output
