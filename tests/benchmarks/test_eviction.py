import pytest

from benchmarks import eviction

RUN = ["--conversations", "20", "--blocks", "600", "900"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return eviction.main([*RUN, "--plot", "--results", str(folder)]) | {"folder": folder}


def test_every_strategy_is_measured_with_every_pool(results):
    measured = [(each["strategy"], each["num_blocks"]) for each in results["outcomes"]]
    assert measured == [(name, n) for name in ("lru", "lfu", "fifo", "belady") for n in (600, 900)]
    assert (results["folder"] / "eviction.png").exists()
    assert (results["folder"] / "eviction.json").exists()


def test_all_strategies_see_the_same_tokens_and_none_beats_an_infinite_pool(results):
    best = results["no_eviction"]
    assert best["evictions"] == 0
    assert 0 < best["hit_rate"] < 1
    for outcome in results["outcomes"]:
        assert outcome["evictions"] > 0
        assert outcome["queried_tokens"] == best["queried_tokens"]
        assert 0 <= outcome["hit_rate"] <= best["hit_rate"]


def test_the_oracle_is_an_upper_bound(results):
    rates = {
        (each["strategy"], each["num_blocks"]): each["hit_rate"] for each in results["outcomes"]
    }
    for (_, num_blocks), rate in rates.items():
        assert rate <= rates["belady", num_blocks]


def test_a_turn_sends_all_that_was_said_before():
    turns = eviction.make_traffic(20, seed=0)
    assert [turn.arrival for turn in turns] == sorted(turn.arrival for turn in turns)
    followers = [turn for turn in turns if turn.previous is not None]
    assert followers
    for turn in followers:
        before = turns[turn.previous]
        said = [*before.prompt, *before.answer]
        assert turn.prompt[: len(said)].tolist() == said


def test_traffic_is_the_same_each_time():
    assert eviction.make_traffic(5, seed=1) == eviction.make_traffic(5, seed=1)
    assert eviction.make_traffic(5, seed=1) != eviction.make_traffic(5, seed=2)
