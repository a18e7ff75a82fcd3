"""One local Ray cluster for all tests, and servers in it."""

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import ray
from openai import OpenAI

ROOT = Path(__file__).parents[2]
SMALL = ["--num-gpu-blocks-override=600", "--max-num-seqs=8", "--cpus-per-replica=0.5"]


@pytest.fixture(scope="session")
def ray_address():
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        logging_level="error",
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


class Server:
    """A server in the cluster, started by the command line."""

    def __init__(self, process, url):
        self.process = process
        self.url = url
        self.client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)

    def metric(self, name, **labels):
        """The values of a metric, by replica."""
        page = httpx.get(f"{self.url}/metrics", timeout=60).text
        found = {}
        for line in page.splitlines():
            if line.startswith(f"{name}{{") and all(
                f'{k}="{v}"' in line for k, v in labels.items()
            ):
                replica = re.search(r'replica="(\w+)"', line)[1]
                found[replica] = found.get(replica, 0) + float(line.rpartition(" ")[2])
        return found

    def replicas(self):
        return set(self.metric("vllm:num_requests_running"))


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


PORT = free_port()
"""The port of all servers: the cluster's proxy keeps the first one."""


@contextmanager
def serving(ray_address, *options):
    where = [f"--ray-address={ray_address}", f"--port={PORT}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "minimal_vllm", "serve", "--ray", *where, *SMALL, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_SERVE_LOG_TO_STDERR": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stdout:
            if line.startswith("Serving at"):
                break
        else:
            raise AssertionError("the server did not start: see standard error")
        yield Server(process, line.split()[-1])
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.3)


def replica_processes():
    """The replicas' processes of this cluster."""
    return [
        each
        for each in psutil.Process().children(recursive=True)
        if "EngineReplica" in " ".join(each.cmdline())
    ]
