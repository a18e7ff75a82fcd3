"""Older policies are correct engines too: only slower, or wasteful."""

import logging
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimal_vllm.cache.eviction import LRU
from minimal_vllm_lab.ablate.policies import (
    ContiguousPool,
    DeclaredReserved,
    LongestReserved,
    Reservation,
    StaticBatching,
)
from tests.engine.test_traffic import random_config, run_randomly
from tests.engine.traffic import Traffic

CONTIGUOUS = {"block_pool": ContiguousPool, "enable_prefix_caching": False}
POLICIES = {
    "static": {"scheduler": StaticBatching},
    "reservation": {"scheduler": Reservation},
    "longest": {"scheduler": LongestReserved, **CONTIGUOUS},
    "declared": {"scheduler": DeclaredReserved, **CONTIGUOUS},
}


@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_under_any_policy_every_request_reads_its_own_prefix_and_ends_once(
    name, async_scheduling, caplog
):
    caplog.set_level(logging.CRITICAL, "minimal_vllm")
    events = Counter()

    @settings(max_examples=60)
    @given(st.integers(0, 2**32 - 1))
    def run(seed):
        random = Random(seed)
        config = random_config(random) | POLICIES[name]
        traffic = Traffic(async_scheduling=async_scheduling, **config)
        run_randomly(random, traffic)
        events.update(traffic.events)

    run()
    assert events["ended by length"] > 20
    assert (events["preempted"] > 0) is (name == "static")
    assert (events["cached"] > 0) is (name in ("static", "reservation"))


def traffic_of(name, num_blocks=64, **config):
    limits = {"block_size": 4, "max_model_len": 64, "max_num_seqs": 3}
    return Traffic(num_blocks, **limits | {"max_num_batched_tokens": 16} | config | POLICIES[name])


def admitted(plan):
    return [request.request_id for request in plan.admitted]


def test_a_static_batch_admits_no_request_until_all_of_it_is_done():
    traffic = traffic_of("static")
    for name, length in {"a": 2, "b": 9, "c": 5, "d": 2}.items():
        traffic.add([1, 2], name, max_tokens=length, ignore_eos=True)
    assert admitted(traffic.step()) == ["a", "b", "c"]
    for _ in range(8):
        assert admitted(traffic.step()) == []
    assert traffic.scheduler.running == []
    assert admitted(traffic.step()) == ["d"]


def test_a_static_batch_may_take_several_steps_to_assemble():
    traffic = traffic_of("static")
    for name in "abc":
        traffic.add([1] * 12, name, salt=name, max_tokens=3, ignore_eos=True)
    assert [admitted(traffic.step()) for _ in range(3)] == [["a", "b"], ["c"], []]


def test_a_request_admitted_with_a_reservation_is_never_preempted():
    ordinary, reserving = (
        Traffic(4, block_size=4, max_model_len=16),
        traffic_of("reservation", num_blocks=4, max_model_len=16),
    )
    for traffic in (ordinary, reserving):
        for name in "ab":
            traffic.add([1, 2], name, salt=name, max_tokens=13, ignore_eos=True)
        traffic.run()
    assert ordinary.events["preempted"] > 0
    assert reserving.events["preempted"] == 0


@pytest.mark.parametrize(("name", "num_blocks"), [("longest", 16), ("declared", 3)])
def test_contiguous_room_is_allocated_once_and_in_one_piece(name, num_blocks):
    traffic = traffic_of(name)
    traffic.add([1] * 5, "a", max_tokens=6, ignore_eos=True)
    traffic.step()
    (request,) = traffic.scheduler.running
    assert request.block_table.tolist() == list(range(num_blocks))
    traffic.run()


def test_a_gap_that_is_too_narrow_is_unusable_until_adjacent_blocks_are_free():
    pool = ContiguousPool(10, LRU())
    first, second, third = (pool.allocate(count) for count in (3, 4, 3))
    pool.release(first)
    pool.release(third)
    assert pool.num_free == 3
    with pytest.raises(ValueError, match="4 adjacent blocks wanted, but the widest gap has 3"):
        pool.allocate(4)
    pool.check([second])
    pool.release(second)
    assert pool.allocate(10) == list(range(10))
    pool.check([range(10)])
