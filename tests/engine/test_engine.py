"""What ``step`` hands out, as a server sees it: one output per step, or only what is new."""

from itertools import chain

import pytest
import torch

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.outputs import OutputKind
from tests.engine.traffic import Traffic

PROMPT = [7, 200, 31, 5]
PARAMS = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, logprobs=0)
RANDOM = SamplingParams(
    n=3, temperature=20, seed=11, max_tokens=30, stop_token_ids=list(range(16)), ignore_eos=True
)


@pytest.fixture(scope="module")
def engine(checkpoint):
    return LLM(str(checkpoint("qwen3")), num_gpu_blocks_override=16).engine


def run(engine, params=PARAMS, kind=OutputKind.CUMULATIVE):
    """All outputs of one request."""
    engine.add_request("a", PROMPT, params, prompt="text", output_kind=kind)
    outputs = []
    while engine.has_unfinished_requests:
        outputs += engine.step()
    return outputs


@pytest.fixture(scope="module")
def final(engine):
    (output,) = run(engine, kind=OutputKind.FINAL_ONLY)
    return output


def test_the_final_output_is_all_there_is(final):
    completion = final.outputs[0]
    assert (final.finished, final.prompt, final.prompt_token_ids) == (True, "text", PROMPT)
    assert len(completion.token_ids) == len(completion.logprobs) == 9
    assert completion.finished()


def test_cumulative_outputs_grow_to_the_final_one(engine, final):
    outputs = run(engine)
    completions = [output.outputs[0] for output in outputs]
    expected = final.outputs[0]
    assert [each.token_ids for each in completions] == [
        expected.token_ids[:length] for length in range(1, 10)
    ]
    assert all(expected.text.startswith(each.text) for each in completions)
    assert completions[-1].text == expected.text
    assert [output.finished for output in outputs] == [False] * 8 + [True]


def test_deltas_add_up_to_the_final_output(engine, final):
    outputs = run(engine, kind=OutputKind.DELTA)
    completions = [output.outputs[0] for output in outputs]
    expected = final.outputs[0]
    assert [len(each.token_ids) for each in completions] == [1] * 9
    assert list(chain.from_iterable(each.token_ids for each in completions)) == expected.token_ids
    assert list(chain.from_iterable(each.logprobs for each in completions)) == expected.logprobs
    assert "".join(each.text for each in completions) == expected.text
    assert [each.finish_reason for each in completions] == [None] * 8 + ["length"]


def test_each_of_n_deltas_ends_once_and_is_silent_then(engine):
    (final,) = run(engine, RANDOM, OutputKind.FINAL_ONLY)
    lengths = [len(completion.token_ids) for completion in final.outputs]
    assert len(set(lengths)) == 3, "they should end at different times"
    deltas = [each for output in run(engine, RANDOM, OutputKind.DELTA) for each in output.outputs]
    for completion in final.outputs:
        own = [delta for delta in deltas if delta.index == completion.index]
        assert list(chain.from_iterable(delta.token_ids for delta in own)) == completion.token_ids
        assert "".join(delta.text for delta in own) == completion.text
        assert [delta.finish_reason for delta in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].finish_reason == completion.finish_reason


def test_an_abort_hands_out_what_there_is(engine, final):
    engine.add_request("a", PROMPT, PARAMS)
    for _ in range(4):
        engine.step()
    output = engine.abort("a")
    assert (output.finished, output.outputs[0].finish_reason) == (True, "abort")
    assert output.outputs[0].token_ids == final.outputs[0].token_ids[:4]
    assert engine.abort("a") is None
    assert not engine.has_unfinished_requests


def test_an_engine_whose_device_is_lost_says_so_instead_of_failing_each_step(monkeypatch):
    traffic = Traffic(4, block_size=4, max_model_len=16)
    traffic.add([1, 2, 3])

    def lose_the_device(plan):
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(traffic.runner, "launch", lose_the_device)
    with pytest.raises(torch.AcceleratorError):
        traffic.engine.step()


def test_a_running_request_keeps_the_parameters_that_it_was_added_with(engine):
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    engine.add_request("0", [1, 2, 3], params, output_kind=OutputKind.FINAL_ONLY)
    params.max_tokens = 1
    outputs = []
    while engine.has_unfinished_requests:
        outputs += engine.step()
    assert len(outputs[0].outputs[0].token_ids) == 5


def test_a_list_that_was_changed_in_place_is_checked_and_copied(engine):
    params = SamplingParams(temperature=0, max_tokens=5, stop=["one"])
    params.stop.append("")
    with pytest.raises(ValueError, match="stop string must not be empty"):
        engine.add_request("0", [1, 2, 3], params)
    assert not engine.has_unfinished_requests


def test_a_step_that_only_preempts_is_recorded_like_any_other():
    """Ahead of A's last token, B finds no block, and no request is left to compute."""
    traffic = Traffic(3, block_size=3, max_model_len=9, async_scheduling=True)
    traffic.add([1, 2, 3], "A", max_tokens=2, ignore_eos=True)
    traffic.add([1, 2], "B", max_tokens=6, ignore_eos=True)
    while traffic.live():
        traffic.step()
    told = [(len(each.scheduled), each.preempted, each.admitted) for each in traffic.records]
    assert told[:4] == [(2, (), ("A", "B")), (2, (), ()), (0, ("B",), ()), (1, (), ("B",))]


# ---- steps that are launched once the tokens of the step before are known -----------------------


def waiting_traffic():
    """Traffic of an engine that runs ahead, but needs to know all tokens for each plan."""
    traffic = Traffic(8, block_size=4, max_model_len=16, async_scheduling=True)
    traffic.scheduler.needs_pending_tokens = lambda: True
    return traffic


def test_the_next_step_is_launched_before_outputs_are_made(monkeypatch):
    """The GPU waits for tokens that a plan needs, and not for the texts of the step before."""
    traffic, events = waiting_traffic(), []

    def note_calls(owner, name):
        call = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: (events.append(name), call(*given))[1])

    note_calls(traffic.runner, "launch")
    note_calls(traffic.engine._outputs, "make_outputs")
    traffic.add([1, 2, 3], max_tokens=3, ignore_eos=True)
    traffic.run()
    assert events == ["launch", *["launch", "make_outputs"] * 2, "make_outputs"]


def test_a_launch_that_fails_costs_no_tokens_of_the_step_before():
    traffic = waiting_traffic()
    traffic.add([1, 2, 3], "A", max_tokens=2, ignore_eos=True)
    traffic.add([1, 2], "B", max_tokens=6, ignore_eos=True, n=2)
    traffic.step()
    traffic.crash_next_step()
    traffic.step()
    outputs = [each for name in "AB" for each in traffic.ended[name].outputs]
    assert [each.finish_reason for each in outputs] == ["length", "error", "error"]
    assert [len(each.token_ids) for each in outputs] == [2, 2, 2]
    assert [record.step for record in traffic.records] == [0, 1, 2]
    ended = [name for record in traffic.records for name, _ in record.finished]
    assert ended == ["A", "B#0", "B#1"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stop": ["zz", "3!"], "logprobs": 1}, "stop"),
        ({"n": 3, "temperature": 1.5, "seed": 4}, "length"),
    ],
)
def test_what_users_get_does_not_depend_on_when_outputs_are_made(
    engine, monkeypatch, changes, reason
):
    params = SamplingParams(**{"temperature": 0, "max_tokens": 30, "ignore_eos": True, **changes})
    kinds = (OutputKind.CUMULATIVE, OutputKind.DELTA, OutputKind.FINAL_ONLY)
    expected = [without_times(run(engine, params, kind)) for kind in kinds]
    assert expected[-1][-1][1][0].finish_reason == reason
    monkeypatch.setattr(engine, "_runs_ahead", True)
    monkeypatch.setattr(engine.scheduler, "needs_pending_tokens", lambda: True)
    assert [without_times(run(engine, params, kind)) for kind in kinds] == expected
    engine.scheduler.check()
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks


def without_times(outputs):
    return [(each.finished, each.outputs) for each in outputs]
