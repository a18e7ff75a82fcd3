import socket
import threading
import time

import pytest

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
