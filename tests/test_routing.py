from array import array

import pytest

from minimal_vllm.routing import (
    IMBALANCE,
    ROUTERS,
    LeastLoaded,
    PrefixAware,
    RoundRobin,
)
from minimal_vllm_lab.sim.cluster import Cluster
from minimal_vllm_lab.sim.job import Job, make_request
from minimal_vllm_lab.sim.metrics import Metrics
from tests.lab.sim.simulated import make_jobs, make_replica, run

BLOCK_SIZE = 4


def request(*tokens):
    return make_request(Job(0.0, array("i", tokens), 1), 0)


def set_loads(router, loads):
    router.loads.update(enumerate(loads))


def test_round_robin_takes_turns():
    router = RoundRobin(range(3), BLOCK_SIZE)
    assert [router.choose(request(1)) for _ in range(5)] == [0, 1, 2, 0, 1]


def test_the_least_loaded_is_chosen_and_equals_take_turns():
    router = LeastLoaded(range(3), BLOCK_SIZE)
    set_loads(router, [2, 1, 1])
    assert [router.choose(request(1)) for _ in range(3)] == [1, 2, 1]


def test_without_a_replica_there_is_no_choice():
    router = LeastLoaded([0], BLOCK_SIZE)
    router.remove(0)
    with pytest.raises(LookupError, match="no replica"):
        router.choose(request(1))


@pytest.mark.parametrize("routing", ROUTERS)
def test_replicas_may_come_and_go(routing):
    router = ROUTERS[routing](["a", "b"], BLOCK_SIZE)
    chosen = {router.choose(request(*[token] * 4)) for token in range(4)}
    router.remove("a")
    router.add("c")
    later = {router.choose(request(*[token] * 4)) for token in range(4, 12)}
    assert (chosen, later) == ({"a", "b"}, {"b", "c"})


def test_a_prompt_is_sent_where_its_longest_prefix_was_sent():
    router = PrefixAware(range(3), BLOCK_SIZE)
    assert router.choose(request(1, 1, 1, 1)) == 0
    set_loads(router, [1, 0, 0])
    assert router.choose(request(2, 2, 2, 2)) == 1
    set_loads(router, [1, 1, 0])
    assert router.choose(request(1, 1, 1, 1, 5, 6)) == 0
    assert router.choose(request(2, 2, 2, 2, 5, 6)) == 1
    assert router.choose(request(3, 3, 3, 3, 5, 6)) == 2


def test_a_short_common_prefix_counts_less_than_the_load():
    router = PrefixAware(range(2), BLOCK_SIZE)
    assert router.choose(request(1, 1, 1, 1)) == 0
    set_loads(router, [1, 0])
    assert router.choose(request(1, 1, 1, 1, *range(2, 20))) == 1


def test_prefixes_do_not_count_while_the_loads_are_unbalanced():
    router = PrefixAware(range(2), BLOCK_SIZE)
    assert router.choose(request(1, 1, 1, 1)) == 0
    set_loads(router, [IMBALANCE, 0])
    assert router.choose(request(1, 1, 1, 1)) == 0
    set_loads(router, [IMBALANCE + 1, 0])
    assert router.choose(request(1, 1, 1, 1)) == 1


def test_the_router_forgets_what_was_sent_long_ago():
    router = PrefixAware(range(2), BLOCK_SIZE, num_remembered=2)
    assert router.choose(request(1, 1, 1, 1)) == 0
    for token in range(2, 4):
        router.choose(request(*[token] * BLOCK_SIZE))
    set_loads(router, [1, 0])
    assert router.choose(request(1, 1, 1, 1)) == 1


def test_what_a_replica_has_evicted_does_not_attract_to_it():
    router = PrefixAware(range(2), BLOCK_SIZE)
    first = request(*[1] * 8)
    assert router.choose(first) == 0
    router.forget(0, first.block_hashes[1:])
    assert router.choose(request(*[1] * 8)) == 0  # half of it is still there
    router.forget_all(0)
    assert router.choose(request(*[1] * 8)) == 1


def test_of_several_holders_the_least_loaded_is_chosen():
    router = PrefixAware(range(3), BLOCK_SIZE)
    assert router.choose(request(1, 1, 1, 1)) == 0
    set_loads(router, [IMBALANCE + 1, 1, 0])
    assert router.choose(request(1, 1, 1, 1)) == 2  # which then holds it, too
    set_loads(router, [3, 0, 2])
    assert router.choose(request(1, 1, 1, 1)) == 2
    set_loads(router, [1, 0, 2])
    assert router.choose(request(1, 1, 1, 1)) == 0


def test_a_prefix_with_a_hole_ends_there():
    router = PrefixAware(range(2), BLOCK_SIZE)
    first = request(*range(12))
    assert router.choose(first) == 0
    router.forget(0, first.block_hashes[:1])
    assert router.choose(request(*range(12))) == 1


def test_the_dead_are_forgotten():
    router = PrefixAware(range(2), BLOCK_SIZE)
    assert router.choose(request(1, 1, 1, 1)) == 0
    router.remove(0)
    assert router.choose(request(1, 1, 1, 1)) == 1


def test_a_salt_keeps_prefixes_apart():
    router = PrefixAware(range(2), BLOCK_SIZE)
    assert router.choose(request(1, 1, 1, 1)) == 0
    salted = request(1, 1, 1, 1)
    salted.cache_salt = b"secret"
    assert router.choose(salted) == 1


def test_no_replica_starves_while_others_queue_for_the_same_prefix():
    router = PrefixAware(range(3), BLOCK_SIZE)

    def send_one():
        router.loads[router.choose(request(1, 1, 1, 1))] += 1

    for _ in range(500):
        send_one()
    assert min(router.loads.values()) > 100
    router.add("new")
    for _ in range(IMBALANCE):
        send_one()
    assert router.loads["new"] == IMBALANCE


@pytest.mark.parametrize("routing", ROUTERS)
def test_the_loads_are_0_at_the_end(routing):
    replicas, metrics = [make_replica() for _ in range(3)], Metrics(None)
    router = ROUTERS[routing](range(3), BLOCK_SIZE)
    Cluster(replicas, router, metrics).run(make_jobs(seed=0))
    assert router.loads == {0: 0, 1: 0, 2: 0}


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
