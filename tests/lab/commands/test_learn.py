import sys

import pytest
from click.testing import CliRunner

from minimal_vllm.cli.main import main
from minimal_vllm_lab.commands import learn
from minimal_vllm_lab.learn.exercises import EXERCISES
from tests.lab.learn.solutions import solution


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    yield lambda *arguments: CliRunner().invoke(main, ["learn", *arguments])
    for name in ("eviction", "mine"):
        sys.modules.pop(name, None)


def state(run, name):
    (line,) = (line for line in run().output.splitlines() if f" {name} " in line)
    return line


def test_the_list_shows_the_progress(run, tmp_path):
    assert state(run, "eviction").startswith("· ")
    run("start", "eviction")
    assert state(run, "eviction").startswith("… ")
    path = tmp_path / "eviction.py"
    path.write_text(solution("eviction"))
    assert run("check", "eviction").exit_code == 0
    assert state(run, "eviction").startswith("✓ ")
    path.write_text(path.read_text() + "\n")
    assert "(changed since it was solved)" in state(run, "eviction")


def test_all_exercises_are_listed_and_the_next_one_is_named(run):
    output = run().output
    assert all(f" {name} " in output for name in EXERCISES)
    assert "Next: minimal-vllm learn start bytes-and-flops" in output


def test_a_file_is_never_overwritten(run, tmp_path):
    (tmp_path / "eviction.py").write_text("mine")
    result = run("start", "eviction")
    assert result.exit_code == 2
    assert "eviction.py already exists" in result.output
    assert (tmp_path / "eviction.py").read_text() == "mine"


def test_a_file_may_have_any_name(run, tmp_path):
    output = run("start", "eviction", "mine.py").output
    assert "minimal-vllm learn check eviction mine.py" in output
    (tmp_path / "mine.py").write_text(solution("eviction"))
    assert run("check", "eviction", "mine.py").exit_code == 0


def test_what_passed_is_compared_with_the_engine_s_own(run, tmp_path):
    (tmp_path / "eviction.py").write_text(solution("eviction"))
    output = run("check", "eviction").output
    assert "LRU.evict" in output
    assert "in src/minimal_vllm/cache/eviction.py" in output
    assert "minimal-vllm learn run eviction" in output


@pytest.mark.parametrize("name", [name for name, each in EXERCISES.items() if each.run])
def test_the_engine_is_run_with_the_learner_s_class(name, run, tmp_path, monkeypatch):
    (tmp_path / EXERCISES[name].file_name).write_text("")
    seen = {}
    for command in ("view", "simulate"):
        monkeypatch.setattr(
            main.get_command(None, command), "callback", lambda *_, **options: seen.update(options)
        )
    result = run("run", name, "--max-num-seqs", "4")
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"$ minimal-vllm {EXERCISES[name].run[0]} ")
    parts = ("scheduler", "block_pool", "eviction_policy", "attention_backend")
    own = [seen[part] for part in parts if str(seen.get(part)).startswith(f"{name[:4]}")]
    assert [each.partition(":")[0] for each in own] == [EXERCISES[name].file_name]
    assert seen["max_num_seqs"] == 4


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["start", "frob"], "there is no exercise 'frob'; the exercises are: bytes-and-flops"),
        (["check", "eviction"], "run minimal-vllm learn start eviction first"),
        (["run", "eviction"], "run minimal-vllm learn start eviction first"),
        (["run", "kv-cache"], "exercises that can be run: allocate-and-free"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments, complaint, run):
    result = run(*arguments)
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.split())


def test_a_file_without_the_starter_s_names_is_rejected(run, tmp_path):
    (tmp_path / "eviction.py").write_text("class YourLRU: pass")
    result = run("check", "eviction")
    assert result.exit_code == 2
    assert "has no MyLRU: keep the names of the starter file" in result.output


def test_progress_that_can_t_be_read_says_what_to_do(run, tmp_path):
    (tmp_path / ".minimal-vllm-learn.json").write_text("{")
    (tmp_path / "eviction.py").write_text(solution("eviction"))
    result = run("check", "eviction")
    assert result.exit_code == 2
    assert "Delete it, and check again." in result.output


def test_without_triton_its_exercises_say_so(run, monkeypatch):
    monkeypatch.setattr(learn, "find_spec", lambda name: None)
    run("start", "merge")
    result = run("check", "merge")
    assert result.exit_code == 2
    assert "needs Triton" in result.output
