"""The page rebuilds the engine's state from the records alone."""

import json
from collections import Counter
from random import Random

import pytest
from pydantic_core import to_json

from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.trace.lines import encode
from minimal_vllm.trace.step_record import Listener, StepRecord
from minimal_vllm_lab.view.contents import BlockContents
from minimal_vllm_lab.view.snapshot import take_snapshot
from tests.engine.test_traffic import act_randomly, add_windows, random_config
from tests.engine.traffic import (
    Traffic,
    alternating_scheduler,
    drafting_scheduler,
    guessing_scheduler,
)
from tests.lab.sim.simulated import make_jobs, make_replica, run
from tests.lab.view.browser import REBUILD, actual, page_at

pytestmark = pytest.mark.browser
HISTORIES = 200

REPLAY = """async ({ facts, records }) => {
  const { EngineState } = await import("/view/page/state.js");
  const { Digest } = await import("/view/page/digest.js");
  const state = new EngineState(facts);
  const digest = new Digest();
  const states = [];
  const recount = (now) => {
    const counts = [0, 0, 0, 0];
    for (let block = 0; block < facts.num_blocks; block += 1) counts[now.kindOf(block)] += 1;
    return counts;
  };
  for (const record of records) {
    state.apply(record);
    digest.take(record, state);
    if (record.kind !== "step") continue;
    states.push({ ...(%s)(state), counts: state.counts.slice(), recounted: recount(state) });
  }
  return { states, columns: digest.columns.length };
}"""


class Witness(Listener):
    """An observer that keeps all records, and the engine's state after each step."""

    def __init__(self):
        self.records, self.states = [], []

    def watch(self, scheduler):
        self._scheduler = scheduler
        self._contents = BlockContents(scheduler)

    def __call__(self, record):
        self._contents(record)
        self.records.append(json.loads(encode(record)))
        if isinstance(record, StepRecord):
            state = take_snapshot(self._scheduler, self._contents, record.step)
            self.states.append(actual(json.loads(to_json(state))))


def random_history(seed):
    """Return a witness, facts about its engine, and the number of events of each kind."""
    random, witness = Random(seed), Witness()
    config, eviction = random_config(random), random.choice(["lru", "lfu", "fifo"])
    if random.random() < 0.4:
        config = add_windows(random, config)
    is_async = random.random() < 0.5
    ahead = [alternating_scheduler, drafting_scheduler]
    traffic = Traffic(
        eviction=eviction,
        async_scheduling=is_async,
        observers=[witness],
        scheduler=random.choice([Scheduler, *(ahead if is_async else [guessing_scheduler])]),
        **config,
    )
    witness.watch(traffic.scheduler)
    for _ in range(40):
        act_randomly(random, traffic)
    facts = {
        "num_blocks": config["num_blocks"],
        "block_size": config["block_size"],
        "eviction_policy": eviction,
        "scheduling_policy": config["policy"],
        "windows": config.get("windows", (None,)),
    }
    return witness, facts, traffic.events


def test_the_page_rebuilds_every_state_of_random_histories(chromium, replay_url):
    events = Counter()
    with page_at(chromium, replay_url) as page:
        for seed in range(HISTORIES):
            witness, facts, seen = random_history(seed)
            events += seen
            given = {"facts": facts, "records": witness.records}
            replayed = page.evaluate(REPLAY % REBUILD, given)
            assert replayed["columns"] == len(witness.states)
            for state, expected in zip(replayed["states"], witness.states, strict=True):
                assert state.pop("counts") == state.pop("recounted"), "the counts went astray"
                assert state == expected, f"history {seed}, step {expected['step']}"
    for event in (
        "preempted",
        "evicted",
        "crashed",
        "ended by abort",
        "cached",
        "blocks freed",
        "followed guesses",
        "freed although a step followed",
        "passed by a window",
    ):
        assert events[event] >= 5, f"{event} was hardly tested"


def test_the_page_rebuilds_every_state_of_a_simulation(chromium, replay_url):
    witness = Witness()
    replica = make_replica(num_blocks=24, observers=[witness])
    witness.watch(replica.scheduler)
    run(make_jobs(seed=1), [replica])
    assert any(record.get("preempted") for record in witness.records)
    facts = {
        "num_blocks": 24,
        "block_size": 16,
        "eviction_policy": "lru",
        "scheduling_policy": "fcfs",
    }
    with page_at(chromium, replay_url) as page:
        replayed = page.evaluate(REPLAY % REBUILD, {"facts": facts, "records": witness.records})
    for state, expected in zip(replayed["states"], witness.states, strict=True):
        assert state.pop("counts") == state.pop("recounted"), "the counts went astray"
        assert state == expected, f"step {expected['step']}"
