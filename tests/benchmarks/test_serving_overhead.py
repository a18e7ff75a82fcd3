import pytest

from benchmarks import serving_overhead
from benchmarks.load_client import Answer, Client


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return serving_overhead.main(
        ["--rates=50", "--requests=12", "--tokens=6", "--clients=2", f"--results={folder}"]
    )


def test_each_rate_is_measured_with_all_its_tokens_and_the_cpu_time_of_each_process(results):
    (run,) = results["runs"]
    assert (run["failed"], run["errors"]) == (0, [])
    assert run["tokens"] == 12 * 6
    assert 0 < run["ttft"][0] <= run["ttft"][1]
    assert run["cpu"]["process 0"] >= run["cpu"].get("process 0, main thread", 0)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_client_counts_each_event_once_however_the_stream_is_cut(size):
    event = b'data: {"choices":[{"index":0,"text":" a"}]}\n\n'
    stream = 3 * event + b'data: {"usage":{"completion_tokens":5}}\n\ndata: [DONE]\n\n'
    answer, ended = Answer(), Ended()
    client = Client(b"", answer, ended)
    client.connection_made(Ended())
    for start in range(0, len(stream), size):
        client.data_received(stream[start : start + size])
    assert ended.done()
    assert (len(answer.events), answer.num_tokens, answer.error) == (3, 5, "")


class Ended:
    """A future that needs no event loop, and a connection to nobody."""

    def __init__(self):
        self._is_done = False

    def done(self):
        return self._is_done

    def set_result(self, _):
        self._is_done = True

    def write(self, _):
        pass

    def close(self):
        pass
