import socket
import threading
import time

import pytest

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.trace.facts import engine_facts
from minimal_vllm.trace.writer import TraceWriter
from minimal_vllm.view.replay import replay_server
from tests.view.browser import browser

SMALL = {
    "num_gpu_blocks_override": 12,
    "max_model_len": 96,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 24,
}
"""So small that requests are chunked, preempted and evicted."""


@pytest.fixture(scope="session")
def chromium():
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def trace(tmp_path_factory):
    """A recorded run in which all happens that can be seen."""
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    writer = TraceWriter(path, 10**7)
    llm = LLM(observers=[writer], **SMALL)
    writer.begin(engine_facts(llm.config, llm.built), llm.get_tokenizer().token_text)
    beginning = "The old captain looked at the sea, and then he looked at the ship, and said:"
    prompts = [f"{beginning} {word}" for word in ("Good", "Never", "Where", "I")] * 4
    params = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0)
    llm.generate(prompts, params, use_tqdm=False)
    writer.close()
    return path


@pytest.fixture(scope="session")
def serve_trace():
    """Serves a trace; the address of its page."""
    servers = []

    def serve(path):
        listener = socket.create_server(("127.0.0.1", 0))
        server = replay_server(path)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return "http://{}:{}/view".format(*listener.getsockname())

    yield serve
    for server, thread in servers:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def replay_url(trace, serve_trace):
    return serve_trace(trace)
