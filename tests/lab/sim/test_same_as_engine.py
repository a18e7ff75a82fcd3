"""The simulator schedules as the engine does: the same requests, chunks and blocks, step by step.

The real engine computes on a CPU, with the built-in model; where all requests are there from the
beginning, who is in which step doesn't depend on the time that steps take.
"""

from array import array
from random import Random
from typing import ClassVar

import pytest

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import EVICTION_STRATEGIES
from minimal_vllm.config import SpeculativeConfig
from minimal_vllm.engine import speculating_scheduler
from minimal_vllm.engine.parts import make_speculating_scheduler
from minimal_vllm.speculation.interface import Placeholders
from minimal_vllm_lab.sim.fit import fit_cost_model
from minimal_vllm_lab.sim.guesses import DrawnGuesses, is_lucky
from minimal_vllm_lab.sim.job import Job
from minimal_vllm_lab.sim.replica import Replica
from tests.lab.sim.simulated import COSTS, run


def draw_requests(seed, count=16):
    """Return prompts, half of which begin with the same 40 tokens, and output lengths."""
    random = Random(seed)
    head = [random.randrange(4096) for _ in range(40)]
    for index in range(count):
        own = [random.randrange(4096) for _ in range(random.randint(1, 90))]
        yield (head + own if index % 2 else own), random.randint(1, 40)


def really_run(requests, **options):
    """Return the scheduler's limits, and the records of a run of the engine."""
    records = []
    llm = LLM(observers=[records.append], device="cpu", max_model_len=256, **options)
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
    params = [SamplingParams(max_tokens=n, ignore_eos=True, seed=0) for _, n in requests]
    llm.generate(prompts, params, use_tqdm=False)
    return llm.built.scheduler_config, records


def decisions(records):
    """Return the decisions of each step, without times and tokens."""
    order = {}  # the engine and the simulator number requests differently
    for record in records:
        for request_id in record.admitted:
            order.setdefault(request_id, len(order))
    return [
        (
            [
                (order[each.request_id], each.start, each.num_tokens, each.cached_blocks)
                for each in record.scheduled
            ],
            [each.new_blocks for each in record.scheduled],
            [order[each] for each in (*record.admitted, *record.preempted)],
            [(order[request_id], reason) for request_id, reason in record.finished],
            record.evicted_blocks,
            (record.num_running, record.num_waiting, record.num_free_blocks),
            (record.num_cached_blocks, record.prefix_queries, record.prefix_hits),
        )
        for record in records
    ]


@pytest.mark.parametrize(
    ("num_blocks", "options", "event"),
    [
        (400, {}, "admitted"),
        (24, {"eviction_policy": "lfu"}, "evicted_blocks"),
        (20, {"max_num_batched_tokens": 32, "max_num_seqs": 10}, "preempted"),
        (100, {"enable_prefix_caching": False, "block_size": 5}, "finished"),
    ],
)
def test_every_step_is_the_engine_s_own(num_blocks, options, event):
    requests = list(draw_requests(seed=1))
    config, real = really_run(requests, num_gpu_blocks_override=num_blocks, **options)
    eviction = EVICTION_STRATEGIES[options.get("eviction_policy", "lru")]
    pool = BlockPool(num_blocks, eviction())
    simulated = []
    jobs = [Job(0.0, array("i", prompt), num_output) for prompt, num_output in requests]
    run(iter(jobs), [Replica(config, pool, COSTS, [simulated.append])])
    assert decisions(simulated) == decisions(real)
    assert any(getattr(record, event) for record in real)


class Lucky:
    """Guesser that knows the outputs, and is right where the simulator draws that it is."""

    outputs: ClassVar[dict] = {}
    """Arrival of a request -> its output without guesses."""

    def propose(self, entries, counts):
        pairs = zip(entries, counts, strict=True)
        return [self._guess(entry.request, count) for entry, count in pairs]

    def _guess(self, request, count):
        first = request.num_output_tokens
        return [
            token if is_lucky(0.6, 5, request.arrival, first + index) else (token + 1) % 4096
            for index, token in enumerate(self.outputs[request.arrival][first : first + count])
        ]

    def forget(self, request):
        pass


@pytest.mark.parametrize(
    ("num_blocks", "options"),
    [(400, {}), (64, {"block_size": 4})],
    ids=["roomy", "preempted"],
)
def test_every_step_with_guesses_is_the_engine_s_own(num_blocks, options, monkeypatch):
    """With as many guesses as there is room for: how many pay depends on measured times."""
    monkeypatch.setattr(
        speculating_scheduler, "choose_counts", lambda rates, most, *_, in_passes: list(most)
    )
    requests = list(draw_requests(seed=1))
    options = {"num_gpu_blocks_override": num_blocks, **options}
    _, plain = really_run(requests, **options)
    outputs = {each.request_id: [] for record in plain for each in record.scheduled}
    for record in plain:
        for each in record.scheduled:
            outputs[each.request_id] += each.sampled_tokens
    Lucky.outputs = dict(enumerate(outputs.values(), 1))
    speculative = SpeculativeConfig(method=f"{__name__}:Lucky", num_speculative_tokens=4)
    config, real = really_run(requests, **options, speculative_config=speculative)

    simulated = []
    replica = Replica(
        config,
        BlockPool(num_blocks, EVICTION_STRATEGIES["lru"]()),
        COSTS,
        [simulated.append],
        lambda limits, pool, clock: make_speculating_scheduler(
            speculative, limits, pool, Placeholders(), clock
        ),
        guesses=DrawnGuesses([0.6], seed=5),
    )
    jobs = [Job(0.0, array("i", prompt), num_output) for prompt, num_output in requests]
    run(iter(jobs), [replica])
    assert decisions(simulated) == decisions(real)
    assert guesses(simulated) == guesses(real)
    assert replica.tally.guesses.num_draft_tokens > 100
    assert any(record.preempted for record in real) == (num_blocks == 64)


def guesses(records):
    """Return how many guesses each request had in each step, and how many were right."""
    return [
        [(each.num_guesses, len(each.sampled_tokens), each.num_rejected) for each in one.scheduled]
        for one in records
    ]


def test_costs_can_be_fitted_to_a_real_run():
    _, records = really_run(list(draw_requests(seed=2)), num_gpu_blocks_override=400)
    costs = fit_cost_model(records[2:])
    assert min(vars(costs).values()) >= 0
    assert max(vars(costs).values()) > 0
