"""Reported memory use is the actual use."""

import pytest

from minimal_vllm_lab.ablate.memory import SAMPLE_INTERVAL, MemoryWatch, count_slots
from minimal_vllm_lab.ablate.policies import ContiguousPool, LongestReserved
from tests.engine.traffic import Traffic

LIMITS = {"block_size": 4, "max_model_len": 32, "max_num_seqs": 4, "max_num_batched_tokens": 64}


def slots_of(traffic):
    slots = count_slots(traffic.scheduler.running, 4, traffic.pool.num_blocks)
    return slots.tokens, slots.reserved, slots.never_used, slots.free


def test_a_paged_request_wastes_only_the_end_of_its_last_block():
    traffic = Traffic(16, **LIMITS)
    traffic.add([1] * 6, max_tokens=9, ignore_eos=True)
    traffic.step()
    assert slots_of(traffic) == (6, 2, 0, 64 - 8)


def test_the_end_of_a_request_s_last_block_is_never_used():
    traffic = Traffic(16, **LIMITS)
    traffic.add([1] * 6, max_tokens=1, n=1, ignore_eos=True)
    traffic.add([2] * 5, max_tokens=2, ignore_eos=True)
    traffic.step()
    assert slots_of(traffic) == (5, 2, 1, 64 - 8)


def test_a_block_that_several_share_counts_once():
    traffic = Traffic(16, **LIMITS)
    for _ in range(2):
        traffic.add([1] * 9, max_tokens=9, ignore_eos=True)
    traffic.step()
    assert slots_of(traffic) == (8 + 2, 6, 0, 64 - 16)


def test_all_slots_of_a_reservation_without_a_token_are_reported():
    traffic = Traffic(
        20,
        scheduler=LongestReserved,
        block_pool=ContiguousPool,
        enable_prefix_caching=False,
        **LIMITS,
    )
    traffic.add([1] * 6, max_tokens=9, ignore_eos=True)
    traffic.step()
    assert slots_of(traffic) == (6, 9, 17, 80 - 32)


def test_the_watch_averages_over_time_and_reports_the_pool_while_requests_wait():
    traffic, watch = Traffic(16, **LIMITS), MemoryWatch()
    assert watch.result() == {
        "peak_blocks": 0,
        "mean_running": None,
        "kv_waste": None,
        "kv_shares": {},
    }
    for _ in range(5):  # one more than may run
        traffic.add([1] * 4, max_tokens=9, ignore_eos=True)
    traffic.step()
    watch.sample(traffic.scheduler, 10.0)
    watch.sample(traffic.scheduler, 10.0 + SAMPLE_INTERVAL / 2)  # too soon
    watch.sample(traffic.scheduler, 12.0)
    result = watch.result()
    assert (result["peak_blocks"], result["mean_running"], result["kv_waste"]) == (4, 4, 0)
    assert result["kv_shares"] == pytest.approx(
        {"tokens": 0.25, "reserved": 0, "never_used": 0, "free": 0.75}
    )
