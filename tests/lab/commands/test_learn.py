import json
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from minimal_vllm.cli.main import main
from minimal_vllm_lab.commands import learn
from minimal_vllm_lab.learn import check_order
from minimal_vllm_lab.learn.check_order import Race
from minimal_vllm_lab.learn.exercises import EXERCISES
from minimal_vllm_lab.learn.leaderboard import Entry, Leaderboard
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
    (path,) = re.findall(r" in (\S+)$", output, re.M)
    assert path.endswith("src/minimal_vllm/cache/eviction.py")
    assert Path(path).is_file()
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
        (["hint", "frob"], "there is no exercise 'frob'"),
        (["check", "eviction", __file__, "--leaderboard", "b"], "only beat-fcfs has a leaderboard"),
        (["check", "beat-fcfs", __file__, "--leaderboard", "b", "--seed", "1"], "leave out --seed"),
        (["check", "beat-fcfs", __file__, "--leaderboard", "b", "--json"], "leave out --json"),
        (["check", "beat-fcfs", __file__, "--as", "ada"], "name its file with --leaderboard"),
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


def test_a_file_that_only_inherits_is_no_solution(run, tmp_path):
    text = "from minimal_vllm.engine.scheduler import Scheduler as MyScheduler\n"
    (tmp_path / "preemption.py").write_text(text)
    result = run("check", "preemption")
    assert result.exit_code == 2
    assert "defines none of MyScheduler.make_room, MyScheduler.preempt" in result.output


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


def test_hints_say_more_level_by_level(run):
    first = run("hint", "preemption").output
    assert "More: minimal-vllm learn hint preemption 2" in first
    last = run("hint", "preemption", "3").output
    assert "victim" in last
    assert "victim" not in first
    assert "More" not in last
    assert "there is no level 4" in run("hint", "preemption", "4").output


def test_a_mistake_is_followed_by_where_to_find_a_hint(run):
    run("start", "eviction")
    assert run("check", "eviction").output.endswith("Stuck? minimal-vllm learn hint eviction\n")


def test_a_teacher_gets_points_and_the_lesson_as_json(run, tmp_path):
    (tmp_path / "mine.py").write_text(solution("eviction"))
    result = run("check", "eviction", "mine.py", "--json", "--seed", "7")
    assert result.exit_code == 0
    graded = json.loads(result.stdout)
    assert (graded["passed"], graded["points"], graded["seed"]) == (True, 1, 7)
    assert graded["lesson"] is None
    noisy = solution("eviction").replace("popitem(last=False)", "popitem()") + "\nprint('hello')\n"
    (tmp_path / "wrong.py").write_text(noisy)
    result = run("check", "eviction", "wrong.py", "--json")
    del sys.modules["wrong"]
    assert result.exit_code == 1
    graded = json.loads(result.stdout)
    assert (graded["passed"], graded["points"], graded["max_points"]) == (False, 0, 1)
    assert graded["lesson"]["rule"].startswith("Least recently used")
    assert graded["lesson"]["read"] == "docs/course/06-prefix-caching.md"


@pytest.mark.parametrize("text", ["def", "raise SystemExit", "class YourLRU: pass"])
def test_a_file_that_can_t_be_loaded_is_json_too(text, run, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    result = run("check", "eviction", "mine.py", "--json")
    assert result.exit_code == 1
    graded = json.loads(result.stdout)
    assert graded["points"] == 0
    assert graded["error"]


def test_a_leaderboard_keeps_the_best_of_each_name(tmp_path):
    board = Leaderboard(tmp_path / "board.json")
    board.add("ada", Race(mine=200.0, fcfs=250.0))
    board.add("bob", Race(mine=150.0, fcfs=250.0))
    rows = board.add("ada", Race(mine=240.0, fcfs=250.0))
    assert rows == [Entry("bob", 150.0, 0.4), Entry("ada", 200.0, 0.2)]
    (tmp_path / "board.json").write_text("[{}]")
    with pytest.raises(ValueError, match="is not a leaderboard"):
        board.add("ada", Race(1.0, 1.0))


def test_the_leaderboard_is_printed_after_a_check_that_passes(run, tmp_path, monkeypatch):
    monkeypatch.setattr(check_order, "race", lambda *_: Race(mine=50.0, fcfs=100.0))
    monkeypatch.setattr(check_order, "check_scheduler", lambda *_, **__: None)
    (tmp_path / "mine.py").write_text(solution("beat-fcfs"))
    result = run("check", "beat-fcfs", "mine.py", "--leaderboard", "board.json", "--as", "ada")
    assert result.exit_code == 0
    assert result.output.splitlines()[-1].split() == ["1", "ada", "50", "ms", "50.0%"]
