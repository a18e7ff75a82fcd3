"""Random histories of all that can happen to an engine: what breaks here breaks in production."""

import logging
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.speculation.eagle_cache import EagleCache
from minimal_vllm.speculation.interface import EaglePlaceholders, Placeholders
from tests.engine.fake_head import FakeHead, following_head_scheduler, head_scheduler
from tests.engine.traffic import (
    Traffic,
    alternating_scheduler,
    drafting_scheduler,
    guessing_scheduler,
)

HEADS = (head_scheduler, following_head_scheduler)
COMMON_TEXT = [0, 1, 1, 0, 2, 3, 1, 0, 0, 2, 5, 4, 1, 1, 3, 0, 2, 2, 1, 4, 5, 3, 0, 1]


def random_config(random):
    block_size, num_blocks = random.randint(1, 4), random.randint(2, 12)
    capacity = num_blocks * block_size
    max_model_len = random.randint(max(2, capacity // 2), capacity)
    max_num_seqs = random.randint(1, 5)
    chunked = random.random() < 0.7
    smallest_budget = max(max_num_seqs, 0 if chunked else max_model_len)
    return {
        "num_blocks": num_blocks,
        "block_size": block_size,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": smallest_budget + random.randint(0, 6),
        "enable_chunked_prefill": chunked,
        "enable_prefix_caching": random.random() < 0.8,
        "policy": random.choice(["fcfs", "priority"]),
    }


def add_windows(random, config, *, has_others=False):
    """The same for a model that has a few groups of layers, some of them with a sliding window."""
    kinds = [(None, 1), (None, 5), (3,), (None, 2, 2), (None, None, 7, 4)]
    windows = random.choice([each for each in kinds if each[0] is None or not has_others])
    limits = {name: value for name, value in config.items() if name != "num_blocks"}
    least = SchedulerConfig(**limits, windows=windows).max_blocks_for(config["max_model_len"])
    return {**limits, "num_blocks": least + random.randint(0, 8), "windows": windows}


def add_random_request(random, traffic):
    length = random.randint(0, 6 + traffic.config.max_model_len // 2)
    traffic.add(
        COMMON_TEXT[:length] + random.choices([0, 1], k=random.randint(0, 2)),
        n=random.choice([1, 1, 1, 3]),
        max_tokens=random.choice([1, 9, None, None]),
        seed=random.randint(0, 1),
        salt=random.choice([None, None, "a", "b"]),
        priority=random.randint(-1, 1),
        prompt_logprobs=random.choice([None, None, None, 0]),
    )


def abort_any_request(random, traffic):
    unfinished = [each for each in traffic.asked if each not in traffic.ended]
    preempted = [
        each for each in unfinished if any(one.num_preemptions for one in traffic.requests[each])
    ]
    candidates = [group for group in (preempted, unfinished, list(traffic.asked)) if group]
    if candidates:
        traffic.abort(random.choice(random.choice(candidates)))


def act_randomly(random, traffic):
    chance = random.random()
    if chance < 0.35:
        add_random_request(random, traffic)
    elif chance < 0.42:
        abort_any_request(random, traffic)
    elif chance < 0.44:
        traffic.crash_next_step()
    elif chance < 0.46:
        traffic.poison_next_step()
    elif traffic.engine.has_unfinished_requests:
        traffic.step()


def run_randomly(random, traffic):
    for _ in range(random.randint(10, 60)):
        act_randomly(random, traffic)
    traffic.run()


def test_a_head_that_kept_the_keys_of_its_guesses_would_be_noticed(monkeypatch):
    monkeypatch.setattr(EagleCache, "keeps_guesses", True)
    with pytest.raises(AssertionError):
        guess_in_random_traffic(100)


def test_a_head_that_guessed_before_the_model_computed_would_be_noticed(monkeypatch):
    monkeypatch.setattr(EaglePlaceholders, "propose", Placeholders.propose)
    with pytest.raises(AssertionError):
        guess_in_random_traffic(100)


def test_a_head_that_took_the_newest_token_for_computed_would_be_noticed(monkeypatch):
    note = EagleCache._note_known

    def note_one_too_many(cache, request):
        monkeypatch.setattr(cache, "places_behind", 0)
        note(cache, request)
        monkeypatch.setattr(cache, "places_behind", 1)

    monkeypatch.setattr(EagleCache, "_note_known", note_one_too_many)
    with pytest.raises(AssertionError):
        guess_in_random_traffic(100, following_head_scheduler, async_scheduling=True)


def guess_in_random_traffic(histories, scheduler=head_scheduler, **options):
    for seed in range(histories):
        random = Random(seed)
        config = {**random_config(random), "runner": FakeHead, **options}
        run_randomly(random, Traffic(scheduler=scheduler, **config))


@pytest.mark.parametrize(
    ("histories", "eviction", "async_scheduling", "scheduler", "has_windows"),
    [
        (1000, "lru", False, Scheduler, False),
        (300, "lfu", False, Scheduler, False),
        (300, "fifo", False, Scheduler, False),
        (500, "lru", True, Scheduler, False),
        (500, "lru", False, guessing_scheduler, False),
        (200, "lru", False, Scheduler, True),
        (200, "lru", True, Scheduler, True),
        (200, "lru", False, guessing_scheduler, True),
        (500, "lru", True, alternating_scheduler, False),
        (200, "lru", True, alternating_scheduler, True),
        (1000, "lru", True, drafting_scheduler, False),
        (200, "lru", True, drafting_scheduler, True),
        (500, "lru", False, head_scheduler, False),
        (200, "lru", False, head_scheduler, True),
        (500, "lru", True, following_head_scheduler, False),
        (200, "lru", True, following_head_scheduler, True),
    ],
)
def test_whatever_happens_every_request_reads_its_own_prefix_and_ends_once(
    histories, eviction, async_scheduling, scheduler, has_windows, caplog
):
    caplog.set_level(logging.CRITICAL, "minimal_vllm")
    events = Counter()

    @settings(max_examples=histories)
    @given(st.integers(0, 2**32 - 1))
    def run(seed):
        random = Random(seed)
        config = random_config(random)
        if has_windows:
            # A head shares the blocks of layers without a window.
            config = add_windows(random, config, has_others=scheduler in HEADS)
        if scheduler in HEADS:
            config["runner"] = FakeHead
        traffic = Traffic(
            eviction=eviction, async_scheduling=async_scheduling, scheduler=scheduler, **config
        )
        run_randomly(random, traffic)
        events.update(traffic.events)

    run()
    rare = {
        *("evicted", "preempted", "chunked", "cached", "shared in the step that computes it"),
        *("refused", "crashed", "aborted while waiting", "aborted while computing its prompt"),
        *("aborted while decoding", "aborted while preempted", "aborted while finished"),
        *("ended by stop", "ended by length", "ended by abort", "ended by error"),
    }
    if async_scheduling:
        rare |= {"planned while a token was pending", "preempted while a token was pending"}
    if has_windows:  # in fewer histories
        rare -= {"aborted while preempted", "aborted while computing its prompt"}
        rare |= {"passed by a window"}
    if scheduler is not Scheduler:
        rare |= {"guessed", "several tokens in a step", "rejected", "blocks freed"}
    if scheduler in (drafting_scheduler, following_head_scheduler):
        rare |= {"followed guesses", "followed without guesses", "freed although a step followed"}
        rare |= set() if has_windows else {"preempted while guesses were pending"}
    assert not {event for event in rare if events[event] < 5}, "the search must reach all of these"
