from itertools import islice, repeat

import numpy as np
import pytest
from pydantic import ValidationError

from minimal_vllm_lab.sim.config import SyntheticConfig
from minimal_vllm_lab.sim.synthetic import synthetic_jobs


def jobs(seed=0, **options):
    return list(synthetic_jobs(SyntheticConfig(**options), seed, repeat(0.0)))


def conversation(first, speed):
    """Return all turns of a conversation with an engine that takes ``speed`` seconds for each."""
    turns = [first]
    while turns[-1].follow_up:
        last = turns[-1]
        said = last.prompt + last.prompt[:1] * last.num_output_tokens
        answered = last.arrival + speed
        following = last.follow_up(said, answered)
        if following is None:
            break
        assert following.prompt[: len(said)] == said
        assert following.arrival >= answered
        turns.append(following)
    return turns


def test_lognormal_lengths_have_the_given_mean_and_a_long_tail():
    traffic = jobs(num_prompts=20_000, input_len=300, output_len=50)
    inputs = np.array([len(each.prompt) for each in traffic])
    outputs = np.array([each.num_output_tokens for each in traffic])
    assert inputs.mean() == pytest.approx(300, rel=0.03)
    assert outputs.mean() == pytest.approx(50, rel=0.03)
    assert np.median(inputs) == pytest.approx(300 / np.exp(0.5), rel=0.05)
    assert min(inputs.min(), outputs.min()) >= 1


def test_uniform_lengths_stay_in_their_range():
    options = {"length_distribution": "uniform", "input_len": 100, "output_len": 40}
    traffic = jobs(num_prompts=2000, range_ratio=0.5, **options)
    assert {len(each.prompt) for each in traffic} == set(range(50, 151))
    assert {each.num_output_tokens for each in traffic} == set(range(20, 61))
    assert {len(each.prompt) for each in jobs(num_prompts=20, **options)} == {100}


def test_a_range_without_uniform_lengths_is_rejected():
    with pytest.raises(ValidationError, match="uniform"):
        SyntheticConfig(range_ratio=0.5)


def test_prefixes_without_a_length_are_rejected():
    with pytest.raises(ValidationError, match="prefix_len"):
        SyntheticConfig(num_prefixes=3)


def test_prompts_share_the_given_number_of_prefixes_and_nothing_else():
    traffic = jobs(num_prompts=200, prefix_len=32, num_prefixes=3, input_len=64)
    prefixes = {tuple(each.prompt[:32]) for each in traffic}
    rests = {tuple(each.prompt[32:]) for each in traffic if len(each.prompt) > 40}
    assert len(prefixes) == 3
    assert len(rests) == sum(len(each.prompt) > 40 for each in traffic)


def test_a_turn_sends_the_conversation_so_far_after_a_pause():
    turns = conversation(jobs(num_prompts=1, num_turns=4)[0], speed=1.0)
    assert len(turns) == 4


def test_an_engine_s_speed_changes_no_conversation():
    fast, slow = (
        [conversation(each, speed) for each in jobs(num_prompts=5, num_turns=3)]
        for speed in (0.1, 9.0)
    )
    assert [[each.prompt for each in turns] for turns in fast] == [
        [each.prompt for each in turns] for turns in slow
    ]


def test_requests_are_drawn_only_when_they_are_asked_for():
    endless = synthetic_jobs(SyntheticConfig(num_prompts=10**12), 0, repeat(0.0))
    assert len(list(islice(endless, 10))) == 10


def test_a_seed_determines_the_traffic():
    first, again, other = (jobs(seed, num_prompts=5) for seed in (1, 1, 2))
    assert [each.prompt for each in first] == [each.prompt for each in again]
    assert [each.prompt for each in first] != [each.prompt for each in other]
