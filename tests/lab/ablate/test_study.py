"""A study switches off one idea at a time."""

from dataclasses import fields, replace

import pytest

from minimal_vllm.config import EngineConfig, SpeculativeConfig
from minimal_vllm_lab.ablate.ideas import DECLARED, IDEAS, without
from minimal_vllm_lab.ablate.study import medians, possible_ideas, run_study
from minimal_vllm_lab.sim.config import SimulationConfig

SETTLED = EngineConfig(
    model="x", num_gpu_blocks_override=100, max_model_len=512, max_num_batched_tokens=64
)
ON_GPU = EngineConfig(model="x", device="cuda", async_scheduling=True)
GPU_IDEAS = {"cuda-graphs", "async-scheduling", "cascade"}


@pytest.mark.parametrize("idea", [*IDEAS.values(), DECLARED])
def test_only_what_the_idea_is_about_changes(idea):
    changed = without(idea, SETTLED, 512)
    differing = {
        field.name
        for field in fields(EngineConfig)
        if getattr(changed, field.name) != getattr(SETTLED, field.name)
    }
    if idea is IDEAS["chunked-prefill"]:
        assert changed.max_num_batched_tokens == 512  # the longest prompt must fit
        differing -= {"max_num_batched_tokens"}
    assert differing <= idea.changes.keys()
    assert differing or idea.on_gpu or idea is IDEAS["speculation"]


def test_ideas_for_gpus_are_only_switched_off_on_a_gpu():
    ideas = set(IDEAS) - {"speculation"}
    assert ideas - set(possible_ideas(SETTLED, [], simulated=False)) == GPU_IDEAS
    assert set(possible_ideas(ON_GPU, [], simulated=False)) == ideas
    assert ideas - set(possible_ideas(ON_GPU, [], simulated=True)) == GPU_IDEAS


def test_speculation_is_an_idea_where_it_is_on_and_keeps_the_scheduler():
    config = replace(SETTLED, speculative_config=SpeculativeConfig(num_speculative_tokens=3))
    possible = possible_ideas(config, [], simulated=False)
    assert possible == ["prefix-caching", "chunked-prefill", "lru", "speculation"]
    for name in possible:
        changed = without(IDEAS[name], config, 512)
        assert (changed.speculative_config is None) == (name == "speculation")


def test_the_user_s_choice_is_made_in_the_usual_order():
    assert possible_ideas(SETTLED, ["lru", "paging"], simulated=False) == ["paging", "lru"]


@pytest.mark.parametrize(
    ("name", "options"),
    [("cuda-graphs", {}), ("lru", {"eviction_policy": "fifo"}), ("cascade", {"device": "cpu"})],
)
def test_an_idea_that_is_off_can_t_be_switched_off(name, options):
    config = EngineConfig(model="x", **options)
    assert name not in possible_ideas(config, [], simulated=False)
    with pytest.raises(ValueError, match=f"{name} is not on here"):
        possible_ideas(config, [name], simulated=False)


def test_variants_take_turns_and_the_engine_with_all_ideas_is_the_first():
    seen, written = [], []

    def measure(config, writers):
        seen.append(config.engine)
        written.append(writers)
        return {"output_throughput": len(seen)}

    runs = list(
        run_study(SimulationConfig(SETTLED), ["lru", "preemption"], measure, 2, {"lru": "a writer"})
    )
    assert written == [[], ["a writer"], [], [], [], []], "the first time is enough"
    assert [name for name, _ in runs] == ["all on", "lru", "preemption"] * 2
    assert [each.eviction_policy for each in seen] == ["lru", "fifo", "lru"] * 2
    assert seen[0] == seen[3] == SETTLED


def test_the_medians_of_several_runs_are_reported():
    values = [
        {"a": 1, "b": None, "c": {"x": 5.0}},
        {"a": 9, "b": 2.0, "c": {}},
        {"a": 3, "b": 4.0, "c": {"x": 1}},
    ]
    (full, other) = medians([*(("all on", each) for each in values), ("lru", values[0])])
    assert full == {"idea": "all on", "instead": "", "a": 3, "b": 3.0, "c": {}}
    assert other == {"idea": "lru", "instead": "first in, first out", **values[0]}
