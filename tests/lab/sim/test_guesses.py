"""Speculative decoding in the simulator: luck, and the time and memory that guessing takes."""

import json
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_eagle import head_shape
from minimal_vllm.cache.memory import DeviceMemory
from minimal_vllm.config import EngineConfig
from minimal_vllm.engine import sizing
from minimal_vllm.model.eagle_config import EagleConfig
from minimal_vllm.speculation.draft_cache import DraftCache
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.trace.step_record import RequestRecord, ScheduledRecord, StepRecord
from minimal_vllm.trace.writer import TraceWriter
from minimal_vllm_lab.sim import guesses
from minimal_vllm_lab.sim.config import GuessingConfig, SimulationConfig, SyntheticConfig
from minimal_vllm_lab.sim.guesses import DraftGuesses, DrawnGuesses, is_lucky, read_rates
from minimal_vllm_lab.sim.hardware import CONTEXT_BYTES
from minimal_vllm_lab.sim.job import Job, make_request
from minimal_vllm_lab.sim.presets import PRESETS, read_model_shape
from minimal_vllm_lab.sim.simulation import make_design, simulate
from tests.lab.sim.simulated import COSTS
from tests.trace.records import FACTS

TOKENS = sizing.DEFAULT_BATCHED_TOKENS["cuda"]
NGRAM = {"method": "ngram", "num_speculative_tokens": 4}
DRAFT = {"method": "draft_model", "model": "qwen3-0.6b", "num_speculative_tokens": 4}


def config(speculative=None, model="qwen3-8b", **guessing):
    return SimulationConfig(
        EngineConfig(model=model, speculative_config=speculative),
        synthetic=SyntheticConfig(num_prompts=4, output_len=100),
        guessing=GuessingConfig(**guessing),
    )


def run(*arguments, **options):
    chosen = config(*arguments, **options)
    return simulate(make_design(chosen), chosen)


def entry(number=0, num_guesses=3, start=20):
    request = make_request(Job(0.0, array("i", range(start + 1)), 50), number)
    request.block_table = array("i", range(4 * number, 4 * number + 3))
    return ScheduledRequest(
        request, start, 1 + num_guesses, 1 + num_guesses, guesses=[0] * num_guesses
    )


def test_guesses_are_right_as_often_as_they_should_be():
    counts = [len(DrawnGuesses([0.5, 0.9], 0).sample(entry(number))) for number in range(2000)]
    assert sum(each > 1 for each in counts) / 2000 == pytest.approx(0.5, abs=0.04)
    assert sum(each > 2 for each in counts) / 2000 == pytest.approx(0.45, abs=0.04)
    assert sum(each > 3 for each in counts) / 2000 == pytest.approx(0.405, abs=0.04)
    assert max(counts) == 4


def test_the_luck_of_a_place_depends_on_its_seed_request_and_index_alone():
    places = [(seed, number, index) for seed in range(3) for number in (1, 2) for index in (3, 4)]
    assert len({tuple(is_lucky(0.5, *place) for place in places) for _ in range(3)}) == 1
    assert len({is_lucky(0.5, *place) for place in places}) == 2
    assert all(is_lucky(1.0, *place) and not is_lucky(0.0, *place) for place in places)


def test_right_guesses_save_time_and_wrong_ones_change_nothing_but_a_little_time():
    plain, right, wrong = run(), run(NGRAM, acceptance_rate=1), run(NGRAM, acceptance_rate=0)
    for report in (right, wrong):
        assert report.total_output_tokens == plain.total_output_tokens
    assert right.duration < 0.4 * plain.duration
    assert plain.duration <= wrong.duration < 1.05 * plain.duration
    assert plain.to_json().keys() < right.to_json().keys()
    found = right.to_json()
    assert found["spec_decode_acceptance_rate"] == 100
    assert found["spec_decode_per_position_acceptance_rates"][0] == 1
    assert wrong.to_json()["spec_decode_acceptance_length"] == 1


@pytest.mark.parametrize("speculative", [NGRAM, DRAFT], ids=["ngram", "draft"])
@pytest.mark.parametrize("batch", [1, 32, 128])
def test_guesses_that_are_never_right_cost_at_most_three_percent(batch, speculative):
    """The scheduler learns from the duration of steps, which here are the same in each run."""

    def seconds(speculative, **guessing):
        limits = {"max_num_seqs": batch, "num_gpu_blocks_override": 20_000, "max_model_len": 4096}
        chosen = SimulationConfig(
            EngineConfig(model="qwen3-8b", speculative_config=speculative, **limits),
            synthetic=SyntheticConfig(num_prompts=3 * batch, input_len=128, output_len=128),
            guessing=GuessingConfig(**guessing),
        )
        return simulate(make_design(chosen), chosen).duration

    assert seconds(speculative, acceptance_rate=0.0) < 1.03 * seconds(None)


def test_a_draft_model_takes_time_and_memory():
    free, draft = (run(each, acceptance_rate=0.8) for each in (NGRAM, DRAFT))
    assert 1.1 * free.duration < draft.duration < run().duration


def test_a_draft_model_takes_the_memory_that_the_engine_gives_it():
    chosen = config(DRAFT, acceptance_rate=0.5)
    design = make_design(chosen)
    draft = read_model_shape("qwen3-0.6b", None, None)
    used = 2 * (design.model.num_parameters + draft.num_parameters) + CONTEXT_BYTES
    total = 141 * 2**30
    groups = sizing.choose_groups(design.model, design.scheduler_config.max_model_len)
    memory = DeviceMemory("cuda", total, total - used, used)
    expected = sizing.choose_num_blocks(
        chosen.engine, design.model, groups, torch.bfloat16, memory, TOKENS, draft
    )
    assert design.num_blocks == expected < make_design(config()).num_blocks


@pytest.fixture
def head(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(head_shape(PRESETS["qwen3-8b"])))
    return {"method": "eagle3", "model": str(tmp_path), "num_speculative_tokens": 4}


def test_a_head_takes_less_time_than_a_draft_model(head):
    free, read, drafted = (run(each, acceptance_rate=0.8) for each in (NGRAM, head, DRAFT))
    assert 1.02 * free.duration < read.duration < drafted.duration


def test_a_head_takes_the_memory_that_the_engine_gives_it(head):
    chosen = config(head, acceptance_rate=0.5)
    design = make_design(chosen)
    own = EagleConfig.from_checkpoint(Path(head["model"]))
    used = 2 * (design.model.num_parameters + own.num_parameters) + CONTEXT_BYTES
    total = 141 * 2**30
    groups = sizing.choose_groups(design.model, design.scheduler_config.max_model_len)
    memory = DeviceMemory("cuda", total, total - used, used)
    expected = sizing.choose_num_blocks(
        chosen.engine, design.model, groups, torch.bfloat16, memory, TOKENS, own
    )
    assert design.num_blocks == expected < make_design(config()).num_blocks


def test_each_pass_of_a_draft_model_takes_its_time(monkeypatch):
    loads = []
    monkeypatch.setattr(guesses, "load_of_plan", lambda plan: loads.append(plan) or plan)
    costs = type("Costs", (), {"seconds": lambda self, plan: len(plan.scheduled)})()
    drafting = DraftGuesses([0.5], 0, costs, DraftCache(12, 16, 1, max_step_tokens=30))
    plan = Plan([entry(0, 3), entry(1, 1), entry(2, 0)])
    # It catches up with two contexts of 21 tokens in two passes, and then goes on with one request.
    assert drafting.seconds(plan) == 2 + 1 + 1 + 1
    assert [[each.num_new for each in plan.scheduled] for plan in loads] == [
        [21, 9],
        [12],
        [1],
        [1],
    ]
    loads.clear()
    again = Plan([entry(0, 2)])
    again.scheduled[0].request.block_table = plan.scheduled[0].request.block_table
    drafting.seconds(again)
    assert [[each.num_new for each in plan.scheduled] for plan in loads] == [[1], [1]]


def trace_file(tmp_path, entries):
    writer = TraceWriter(tmp_path / "trace.jsonl", 10**6)
    writer.begin(FACTS, spell=None, started=0.0)
    start = 0
    for number, (num_guesses, num_sampled, rejected) in enumerate(entries):
        if not number:
            writer(RequestRecord("0", 1, 0.0, (1, 2)))
        part = ScheduledRecord(
            *("0", start, 1 + num_guesses),
            sampled_tokens=(7,) * num_sampled,
            num_rejected=rejected,
            num_guesses=num_guesses,
        )
        start += 1 + num_guesses - rejected
        writer(StepRecord(number, 0.0, 0, 1, 0, (part,), *((),) * 4, 1, 0, 9, 9, 0, 0, 0))
    writer.close()
    return tmp_path / "trace.jsonl"


def test_the_luck_of_a_trace_can_be_repeated(tmp_path):
    path = trace_file(tmp_path, [(0, 1, 0), (3, 4, 0), (3, 2, 2), (2, 1, 2), (3, 2, 0)])
    assert read_rates(path) == [3 / 4, 1 / 2, 1.0]  # the last request ended, so no guess was wrong
    design = make_design(config(NGRAM, acceptance_trace=str(path)))
    assert design.acceptance == [3 / 4, 1 / 2, 1.0]


def test_a_trace_without_guesses_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no guesses"):
        read_rates(trace_file(tmp_path, [(0, 1, 0)]))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"speculative": NGRAM}, "acceptance_rate"),
        ({"speculative": {**DRAFT, "model": "llama-3.2-1b"}, "acceptance_rate": 0.5}, "vocabulary"),
        ({"speculative": {**NGRAM, "method": "a.py:B"}, "acceptance_rate": 1}, "not call a.py:B"),
        (
            {"speculative": {**NGRAM, "num_speculative_tokens": 20}, "acceptance_rate": 1},
            "block_size",
        ),
    ],
)
def test_what_cannot_be_simulated_is_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        run(**arguments)


def test_a_rate_and_a_trace_exclude_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        GuessingConfig(acceptance_rate=0.5, acceptance_trace="x.jsonl")


def test_a_fitted_cost_model_does_not_know_the_passes(tmp_path):
    COSTS.save(tmp_path / "costs.json")
    chosen = config(DRAFT, acceptance_rate=0.5)
    fleet = type(chosen.fleet)(cost_model=str(tmp_path / "costs.json"))
    with pytest.raises(ValueError, match="fitted cost_model"):
        make_design(replace(chosen, fleet=fleet))
