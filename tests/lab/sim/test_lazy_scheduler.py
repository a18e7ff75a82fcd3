"""Sleeping through decodes has no visible effect."""

from hypothesis import given
from hypothesis import strategies as st

from tests.lab.sim.simulated import make_jobs, make_replica, run


def books(pool):
    """Return the complete state of a pool, in the order in which it would use its blocks."""
    return (
        pool._references,
        pool._hashes,
        pool._free,
        list(getattr(pool._evictable, "_released", ())),
        getattr(pool._evictable, "_live", {}),
    )


@given(
    seed=st.integers(0, 10**6),
    num_blocks=st.integers(64, 200),
    num_replicas=st.sampled_from([1, 1, 3]),
    num_turns=st.integers(1, 3),
    rate=st.sampled_from([5, 100, 1000]),
    routing=st.sampled_from(["round-robin", "least-loaded", "prefix-aware"]),
    config=st.fixed_dictionaries(
        {
            "block_size": st.sampled_from([4, 5, 16]),
            "enable_prefix_caching": st.booleans(),
            "max_num_batched_tokens": st.sampled_from([8, 50, 300]),
            "max_num_seqs": st.sampled_from([1, 4, 8]),
            "max_model_len": st.sampled_from([100, 256]),
            "cascade": st.booleans(),
            "eviction": st.sampled_from(["lru", "lfu", "fifo"]),
            "windows": st.sampled_from([(None,), (None,), (None, 20, 20), (33,)]),
        }
    ),
)
def test_sleeping_changes_neither_a_time_nor_a_block(
    seed, num_blocks, num_replicas, num_turns, rate, routing, config
):
    outcomes = []
    for observers in ((), [lambda record: None]):  # with observers no request sleeps
        replicas = [
            make_replica(num_blocks * len(config["windows"]), observers=observers, **config)
            for _ in range(num_replicas)
        ]
        report = run(make_jobs(seed, rate=rate, num_turns=num_turns), replicas, routing)
        for replica in replicas:
            replica.scheduler.check()
        outcomes.append((report, [books(replica.scheduler.pool) for replica in replicas]))
    assert outcomes[0] == outcomes[1]
