from array import array

import pytest

from minimal_vllm_lab.sim.cluster import Cluster
from minimal_vllm_lab.sim.job import Job, make_request
from minimal_vllm_lab.sim.metrics import Metrics
from minimal_vllm_lab.sim.routing import IMBALANCE, ROUTERS, LeastLoaded, PrefixAware, RoundRobin
from tests.lab.sim.simulated import make_jobs, make_replica, run

BLOCK_SIZE = 4


def request(*tokens):
    return make_request(Job(0.0, array("i", tokens), 1), 0)


def test_round_robin_takes_turns():
    router = RoundRobin(3, BLOCK_SIZE)
    assert [router.choose(request(1)) for _ in range(5)] == [0, 1, 2, 0, 1]


def test_the_least_loaded_is_chosen_and_the_first_of_equals():
    router = LeastLoaded(3, BLOCK_SIZE)
    router.loads[:] = [2, 1, 1]
    assert router.choose(request(1)) == 1


def test_a_prompt_is_sent_where_its_longest_prefix_was_sent():
    router = PrefixAware(3, BLOCK_SIZE)
    assert router.choose(request(1, 1, 1, 1)) == 0
    router.loads[:] = [1, 0, 0]
    assert router.choose(request(2, 2, 2, 2)) == 1
    router.loads[:] = [1, 1, 0]
    assert router.choose(request(1, 1, 1, 1, 5, 6)) == 0
    assert router.choose(request(2, 2, 2, 2, 5, 6)) == 1
    assert router.choose(request(3, 3, 3, 3, 5, 6)) == 2


def test_a_short_common_prefix_counts_less_than_the_load():
    router = PrefixAware(2, BLOCK_SIZE)
    assert router.choose(request(1, 1, 1, 1)) == 0
    router.loads[:] = [1, 0]
    assert router.choose(request(1, 1, 1, 1, *range(2, 20))) == 1


def test_prefixes_do_not_count_while_the_loads_are_unbalanced():
    router = PrefixAware(2, BLOCK_SIZE)
    assert router.choose(request(1, 1, 1, 1)) == 0
    router.loads[:] = [IMBALANCE, 0]
    assert router.choose(request(1, 1, 1, 1)) == 0
    router.loads[:] = [IMBALANCE + 1, 0]
    assert router.choose(request(1, 1, 1, 1)) == 1


def test_the_router_forgets_what_was_sent_long_ago():
    router = PrefixAware(2, BLOCK_SIZE, num_remembered=2)
    assert router.choose(request(1, 1, 1, 1)) == 0
    for token in range(2, 4):
        router.choose(request(*[token] * BLOCK_SIZE))
    router.loads[:] = [1, 0]
    assert router.choose(request(1, 1, 1, 1)) == 1


@pytest.mark.parametrize("routing", ROUTERS)
def test_the_loads_are_0_at_the_end(routing):
    replicas, metrics = [make_replica() for _ in range(3)], Metrics(None)
    router = ROUTERS[routing](3, BLOCK_SIZE)
    Cluster(replicas, router, metrics).run(make_jobs(seed=0))
    assert router.loads == [0, 0, 0]


def test_sending_conversations_where_they_began_raises_the_hit_rate():
    rates = {
        routing: run(
            make_jobs(seed=0, count=40, num_turns=4, rate=5),
            [make_replica(num_blocks=400) for _ in range(4)],
            routing,
        ).prefix_cache_hit_rate
        for routing in ("round-robin", "prefix-aware")
    }
    assert rates["prefix-aware"] > 1.5 * rates["round-robin"]
