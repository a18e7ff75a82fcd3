"""Each part of the engine can be replaced by a class of the user's, and is used when it is."""

import pytest
import torch

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.attention.reference import ReferenceAttention
from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import FIFO, LRU
from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.runners import runs_ahead
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.sampling.sampler import sample

PROMPTS = [f"On the {day}th day the old captain looked at the sea, and" for day in range(4, 10)]
PARAMS = SamplingParams(temperature=0, max_tokens=8)
USED = []


class CountingScheduler(Scheduler):
    def schedule(self):
        USED.append("scheduler")
        return super().schedule()


class CountingPool(BlockPool):
    def allocate(self, count):
        USED.append("block_pool")
        return super().allocate(count)


class MostRecentlyUsed(LRU):
    def evict(self):
        USED.append("eviction_policy")
        return self._released.popitem(last=True)[0]


class CountingAttention(ReferenceAttention):
    def plan(self, batch):
        USED.append("attention_backend")
        return super().plan(batch)


class SecondBest:
    """Greedy, but for the best."""

    def __call__(self, logits, rows):
        USED.append("sampler")
        best = logits.argmax(dim=-1, keepdim=True)
        return sample(logits.scatter(-1, best, -torch.inf), rows)


def run(**options):
    llm = LLM(device="cpu", max_model_len=64, num_gpu_blocks_override=4, **options)
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.fixture(scope="module")
def built_in():
    return run()


@pytest.mark.parametrize(
    ("option", "part"),
    [
        ("scheduler", CountingScheduler),
        ("block_pool", CountingPool),
        ("eviction_policy", MostRecentlyUsed),
        ("attention_backend", CountingAttention),
    ],
)
def test_a_part_that_only_decides_is_used_and_changes_no_token(option, part, built_in):
    USED.clear()
    assert run(**{option: part}) == built_in
    assert option in USED


def test_a_sampler_of_the_user_s_chooses_the_tokens(built_in):
    assert [tokens[0] for tokens in run(sampler=SecondBest)] != [each[0] for each in built_in]


def test_the_pool_of_the_user_s_is_still_there_after_a_reset():
    pool = CountingPool(4, FIFO()).emptied()
    assert type(pool) is CountingPool
    assert type(pool._evictable) is FIFO


@pytest.mark.parametrize(
    ("option", "part", "complaint"),
    [
        ("scheduler", "fcfs", "scheduler: should name a class, as my_file.py:MyClass"),
        ("eviction_policy", "random", "should be one of lru, lfu, fifo, or name a class"),
        ("attention_backend", "flash", "should be one of auto, reference, tiled, triton, or name"),
    ],
)
def test_a_name_that_nothing_has_is_refused_with_those_that_there_are(option, part, complaint):
    with pytest.raises(ValueError, match=complaint):
        EngineConfig(model="x", **{option: part})


def test_a_part_that_does_not_fit_is_refused_before_anything_runs():
    with pytest.raises(
        ValueError, match=r"can't take the place of SchedulerInterface: .*it lacks reset\(self"
    ):
        run(scheduler=SecondBest)


@pytest.mark.parametrize(
    ("options", "ahead"),
    [
        ({}, True),
        ({"scheduler": Scheduler}, False),
        ({"scheduler": Scheduler, "async_scheduling": True}, True),
        ({"block_pool": BlockPool}, True),
        ({"sampler": SecondBest}, False),
        ({"attention_backend": ReferenceAttention}, False),
    ],
)
def test_steps_are_not_launched_ahead_of_parts_that_may_not_bear_it(options, ahead):
    config = EngineConfig(model="x", **options)
    assert runs_ahead(config, torch.device("cuda")) is ahead


def test_asynchronous_scheduling_with_a_sampler_of_the_user_s_is_refused():
    config = EngineConfig(model="x", sampler=SecondBest, async_scheduling=True)
    with pytest.raises(ValueError, match="and the built-in sampler"):
        runs_ahead(config, torch.device("cuda"))


def test_a_scheduler_that_lets_all_wait_for_ever_is_found_out():
    class Idle(Scheduler):
        def admit_waiting(self, plan, budget):
            pass

    with pytest.raises(ValueError, match="an empty plan although requests are waiting"):
        run(scheduler=Idle)
