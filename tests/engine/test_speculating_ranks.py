"""Guesses in an engine whose model several processes compute: rank 0 decides how many there are."""

import time
from functools import partial
from itertools import accumulate, count
from random import Random
from threading import Barrier

import pytest
from thread_ranks import in_ranks

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.config import EngineConfig
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.engine.build import build_engine
from tests.speculation.test_same_tokens import PROMPTS, count_tokens, learn

OPTIONS = {"num_gpu_blocks_override": 200, "max_model_len": 256}
GUESSERS = {
    "ngram": {"method": "ngram", "prompt_lookup_min": 1},
    "draft_model": {"method": "draft_model"},
    "eagle3": {"method": "eagle3"},
    "knowing": {"method": "tests.speculation.guessers:Knowing"},
}
GREEDY = SamplingParams(temperature=0, max_tokens=24)
RANDOM = SamplingParams(temperature=0.9, seed=5, max_tokens=24, top_p=0.95)


@pytest.fixture(scope="module")
def plain():
    return LLM(**OPTIONS)


def tokens(outputs):
    return [each.outputs[0].token_ids for each in outputs]


@pytest.fixture
def clock(monkeypatch):
    """Steps of this process take as long, however many tokens they have, so that guesses pay."""
    monkeypatch.setattr(time, "thread_time", partial(next, count(0.0, 0.01)))


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("guesser", GUESSERS)
def test_the_tokens_are_those_of_one_process_without_guesses(plain, guesser):
    config = {"num_speculative_tokens": 3, **GUESSERS[guesser]}
    several = LLM(tensor_parallel_size=2, speculative_config=config, **OPTIONS)
    counts = count_tokens(several)
    for params in (GREEDY, RANDOM):
        expected = plain.generate(PROMPTS, params, use_tqdm=False)
        learn(expected)  # in this process alone
        assert tokens(several.generate(PROMPTS, params, use_tqdm=False)) == tokens(expected)
    assert counts["accepted"] > 0
    several.engine.scheduler.check()


def test_ranks_with_other_clocks_plan_the_same_steps(monkeypatch):
    lengths = Random(3)
    times = accumulate(lengths.expovariate(100) for _ in count())
    monkeypatch.setattr(time, "thread_time", partial(next, times))
    config = EngineConfig(
        model=str(DEMO_MODEL_DIR),
        speculative_config={"num_speculative_tokens": 3, **GUESSERS["ngram"]},
        tensor_parallel_size=2,
        **OPTIONS,
    )
    told, barrier = [], Barrier(2, timeout=60)

    def run(ranks):
        def decide(function):
            """What rank 0 decides; the other can't come before the next decision."""
            if ranks.index == 0:
                told[:] = [function()]
            barrier.wait()
            result = told[0]
            barrier.wait()
            return result

        records = []
        engine = build_engine(config, ranks=ranks, decide=decide, observers=[records.append]).engine
        for index in range(3):
            engine.add_request(str(index), [4 + index, 5, 6] * 8, GREEDY)
        while engine.has_unfinished_requests:
            engine.step()
        return [
            [(each.start, each.num_tokens, each.sampled_tokens) for each in record.scheduled]
            for record in records
        ]

    one, other = in_ranks(2, run)
    assert one == other
    assert any(num_tokens > 1 for step in one[3:] for _, num_tokens, _ in step), "no guesses"
