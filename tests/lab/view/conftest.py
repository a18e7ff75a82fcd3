import socket
import threading
import time

import pytest

from minimal_vllm.config import EngineConfig
from minimal_vllm.trace.facts import engine_facts
from minimal_vllm.trace.writer import TraceWriter
from minimal_vllm_lab.sim.config import GuessingConfig, SimulationConfig, SyntheticConfig
from minimal_vllm_lab.sim.simulation import make_design, simulate
from minimal_vllm_lab.view.replay import replay_server


@pytest.fixture(scope="session")
def serve_trace():
    """Return a function that serves one trace or two, and returns the address of the page."""
    servers = []

    def serve(*paths):
        listener = socket.create_server(("127.0.0.1", 0))
        server = replay_server(*paths)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        servers.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return "http://{}:{}/view".format(*listener.getsockname())

    yield serve
    for server, thread in servers:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def replay_url(trace, serve_trace):
    return serve_trace(trace)


@pytest.fixture(scope="session")
def guessed_trace(tmp_path_factory):
    """The file of a simulated run with speculative decoding."""
    config = SimulationConfig(
        EngineConfig(
            model="qwen3-0.6b",
            num_gpu_blocks_override=48,
            max_model_len=128,
            max_num_batched_tokens=64,
            max_num_seqs=8,
            speculative_config={"method": "ngram", "num_speculative_tokens": 4},
        ),
        synthetic=SyntheticConfig(num_prompts=5, input_len=20, output_len=40),
        guessing=GuessingConfig(acceptance_rate=0.7),
    )
    path = tmp_path_factory.mktemp("guessed") / "trace.jsonl"
    writer, design = TraceWriter(path, 10**7), make_design(config)
    writer.begin(engine_facts(config.engine, design), spell=None, started=0.0)
    simulate(design, config, observers_of=lambda _: [writer])
    writer.close()
    return path
