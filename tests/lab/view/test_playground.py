"""The scheduler and the pool run without a model, as they do in the site's page."""

import json
import subprocess
import sys

import pytest

from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.trace.lines import TextsRecord, decode, decode_header
from minimal_vllm.trace.step_record import RequestRecord, StepRecord
from minimal_vllm_lab.view.demo_requests import read_passages
from minimal_vllm_lab.view.playground import PlaygroundSettings, play, play_json

BUSY = PlaygroundSettings(num_gpu_blocks_override=12, requests_per_100_steps=30)
"""Settings with which requests are preempted."""


class LatestFirst(Scheduler):
    """Serves the newest request first."""

    def __init__(self, config, pool):
        super().__init__(config, pool)
        self.key = lambda request: (0, -request.arrival)


def records(run):
    decode_header(run.lines[0])
    return [decode(line) for several in run.lines[1:] for line in several.splitlines()]


def those(kind, run):
    return [each for each in records(run) if isinstance(each, kind)]


def test_a_run_is_a_trace_with_all_that_the_engine_does_and_the_same_each_time():
    run = play(BUSY)
    assert run.complaint is None
    steps = those(StepRecord, run)
    assert [each.step for each in steps] == list(range(len(steps)))
    assert any(each.preempted for each in steps)
    assert any(each.evicted_blocks for each in steps)
    assert steps[-1].prefix_hits > 0
    assert play(BUSY) == run


def test_the_same_requests_arrive_whatever_the_scheduler_does():
    ours, others = play(BUSY), play(BUSY, LatestFirst)
    prompts = [
        [each.prompt_token_ids for each in those(RequestRecord, run)] for run in (ours, others)
    ]
    assert len(prompts[0]) > 50
    assert prompts[0] == prompts[1]
    assert those(StepRecord, ours) != those(StepRecord, others)


def test_an_answer_goes_on_with_the_passage_of_its_prompt():
    run = play(PlaygroundSettings(requests_per_100_steps=2, shared_prefix_tokens=0, seed=3))
    words = {id_: text for each in those(TextsRecord, run) for id_, text in each.texts.items()}
    first = those(RequestRecord, run)[0]
    tokens = [*first.prompt_token_ids]
    for step in those(StepRecord, run):
        for entry in step.scheduled:
            if entry.request_id == first.request_id:
                tokens += entry.sampled_tokens
    text = "".join(words[token] for token in tokens)
    assert len(tokens) > len(first.prompt_token_ids)
    assert any(text in f" {passage}" * 9 for passage in read_passages())


def test_a_window_releases_blocks_and_priorities_are_recorded():
    windowed = play(PlaygroundSettings(sliding_window=8, num_gpu_blocks_override=40))
    assert any(
        entry.passed_blocks for step in those(StepRecord, windowed) for entry in step.scheduled
    )
    ranked = play(PlaygroundSettings(scheduling_policy="priority"))
    assert {each.priority for each in those(RequestRecord, ranked)} == {0, 1, 2}


def write(folder, body):
    file = folder / "my_scheduler.py"
    file.write_text(
        "from minimal_vllm.engine.scheduler import Scheduler\n\n\n"
        f"class MyScheduler(Scheduler):\n    def admit_waiting(self, plan, budget):\n{body}\n"
    )
    return f"{file}:MyScheduler"


CALL = "super().admit_waiting(plan, budget)"


@pytest.mark.parametrize(
    ("body", "message", "line"),
    [
        (f"        if self.running:\n            1 / 0\n        {CALL}", "ZeroDivisionError: ", 7),
        ("        raise ValueError('no')", "ValueError: no", 6),
        ("        return", "step 0 computes nothing, although 1 requests wait", None),
        (f"        {CALL}\n        self.running.clear()", "InvariantError: self._references", None),
        (
            f"        {CALL}\n        plan.scheduled[0].cached_blocks = 8",
            "TypeError: object of type 'int'",
            None,
        ),
        (f"        {CALL}\n        plan.scheduled[0].new_blocks = ['a']", "not 'a'", None),
        ("        return (", "my_scheduler.py can't be loaded: SyntaxError: '(' was never", 6),
        ("        pass\nimport nowhere", "ModuleNotFoundError: No module named 'nowhere'", 7),
        ("        pass\ndel MyScheduler", "has no class MyScheduler", None),
    ],
)
def test_a_mistake_ends_the_run_and_is_reported_with_its_line(tmp_path, body, message, line):
    run = play(BUSY, write(tmp_path, body))
    assert message in run.complaint.message
    assert run.complaint.line == line
    records(run)  # what was recorded before can be shown


def test_a_scheduler_of_ones_own_is_named_in_the_trace(tmp_path):
    run = play(BUSY, write(tmp_path, f"        {CALL}"))
    assert run.complaint is None
    assert "my_scheduler.py:MyScheduler" in decode_header(run.lines[0]).engine.model
    assert run.lines[1:] == play(BUSY).lines[1:]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_gpu_blocks_override": 1, "block_size": 1}, "do not hold a request of two tokens"),
        ({"enable_chunked_prefill": False}, "without chunked prefill"),
        ({"max_num_batched_tokens": 4}, "must be at least max_num_seqs"),
    ],
)
def test_limits_that_contradict_each_other_are_told(settings, message):
    run = play(PlaygroundSettings(**settings))
    assert message in run.complaint.message
    assert run.lines == []


def test_a_page_sends_and_gets_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = "from minimal_vllm.engine.scheduler import Scheduler as MyScheduler\n"
    for source in ("", own):
        answer = json.loads(play_json('{"seed": 4, "sliding_window": null}', source))
        assert answer["complaint"] is None
        lines = answer["lines"].encode().splitlines(keepends=True)[1:]
        assert b"".join(lines) == b"".join(play(PlaygroundSettings(seed=4)).lines[1:])
    answer = json.loads(play_json('{"seeed": 4}', ""))
    assert answer["lines"] == ""
    assert answer["complaint"]["message"].endswith("did you mean seed?")
    assert json.loads(play_json("{}", "1 +"))["complaint"]["line"] == 1


def test_it_needs_neither_torch_nor_numpy():
    program = (
        "import sys\nsys.modules['torch'] = sys.modules['numpy'] = None\n"
        "from minimal_vllm_lab.view.playground import PlaygroundSettings, play\n"
        "assert play(PlaygroundSettings()).complaint is None"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
