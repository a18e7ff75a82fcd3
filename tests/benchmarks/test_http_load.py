"""The server under load, at a size for every day: nothing is lost, and nothing is left behind."""

import pytest

from benchmarks import http_load
from benchmarks.http_load import Crowd, Memory

CLIENTS, TOKENS, REQUESTS, VANISHING = 20, 6, 200, 10


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return http_load.main(
        [
            f"--clients={CLIENTS}",
            f"--tokens={TOKENS}",
            f"--requests={REQUESTS}",
            f"--vanishing={VANISHING}",
            f"--results={folder}",
        ]
    )


def test_every_client_of_a_crowd_gets_all_its_tokens(results):
    crowd = results["crowd"]
    assert (crowd["lost"], crowd["errors"]) == (0, [])
    assert crowd["tokens"] == CLIENTS * TOKENS
    assert crowd["longest_gap"][2] < crowd["whole"][2] <= crowd["duration"]


def test_no_request_of_many_fails_and_memory_is_looked_at_all_along(results):
    memory = results["memory"]
    assert memory["failed"] == 0
    assert [done for done, _ in memory["samples"]] == list(range(0, REQUESTS + 1, REQUESTS // 100))


def test_what_clients_that_vanish_leave_behind_is_nothing(results):
    vanishing = results["vanishing"]
    assert vanishing["aborted"] == VANISHING
    assert vanishing["next_error"] == ""


def test_growth_is_the_slope_behind_the_settling():
    samples = [(0, 100), (10, 500), (20, 520), (30, 540)]
    memory = Memory(failed=0, samples=samples, settled=10)
    assert memory.growth == pytest.approx(2)
    assert memory.at(15) == 520


def test_a_crowd_that_lost_all_has_no_times_to_tell():
    crowd = Crowd(1, 1, ["lost"], 1.0, 0, http_load._spread([]), [], [])
    http_load.print_crowd(crowd)
