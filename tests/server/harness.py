"""Servers to test with: a real process, and one in this process whose engine can be looked into."""

import asyncio
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from tempfile import TemporaryFile
from threading import Condition

import httpx2
import openai

from minimal_vllm.server.config import ServerConfig
from minimal_vllm.server.http_server import bind, serve
from minimal_vllm.server.run import make_service

MODEL = "minimal-vllm-demo"
TOOL_MODEL = "tools"
FEW_BLOCKS = 512
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
PATIENCE = 300
"""Seconds after which a wait is hopeless; no other time matters to a test."""


class Process:
    """``minimal-vllm serve`` in a process of its own, ready for clients."""

    def __init__(self, *arguments, start=("-m", "minimal_vllm")):
        command = [sys.executable, *start, "serve", "--port=0"]
        # A pipe that nobody reads would fill up and block the server.
        self._log = TemporaryFile("w+")  # noqa: SIM115 - closed by ``kill``
        self._process = subprocess.Popen(
            [*command, f"--num-gpu-blocks-override={FEW_BLOCKS}", *arguments],
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=ENVIRONMENT,
            text=True,
        )
        self.summary = ""
        for line in self._process.stdout:
            self.summary += line
            if found := re.search(r"Serving at +(\S+)", line):
                self.url = found[1]
                return
        raise RuntimeError(self.wait()[1])

    def terminate(self):
        self._process.send_signal(signal.SIGTERM)

    def wait(self):
        """Its exit status, and what it wrote to standard error."""
        self._process.communicate(timeout=PATIENCE)
        self._log.seek(0)
        return self._process.returncode, self._log.read()

    def kill(self):
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def client(self, key="none", **options):
        return openai.OpenAI(**self._as_told(key), **options)

    def async_client(self):
        return openai.AsyncOpenAI(**self._as_told("none"))

    def _as_told(self, key):
        url = f"{self.url}/v1"
        return {"base_url": url, "api_key": key, "max_retries": 0, "timeout": PATIENCE}

    def request(self, method, path, **options):
        return httpx2.request(method, f"{self.url}{path}", timeout=PATIENCE, **options)

    def post(self, path, **body):
        return self.request("POST", path, json=body)

    def get(self, path, **options):
        return self.request("GET", path, **options)


@contextmanager
def process(*arguments, **options):
    server = Process(*arguments, **options)
    try:
        yield server
    finally:
        server.kill()


class Gate:
    """An observer of the engine that holds it after each step while the gate is shut.

    What a step gave is told only when the engine goes on.
    """

    def __init__(self):
        self._changed = Condition()
        self._steps_left = math.inf
        self._is_held = False

    def __call__(self, record):
        with self._changed:
            self._steps_left -= 1
            self._is_held = self._steps_left <= 0
            assert self._changed.wait_for(lambda: self._steps_left > 0, PATIENCE)

    def shut(self):
        self.allow(0)

    def open(self):
        self.allow(math.inf)

    def allow(self, count):
        """Let the engine make so many steps, and hold it then."""
        with self._changed:
            self._steps_left, self._is_held = count, False
            self._changed.notify()

    async def step(self, count=1):
        """Wait until the engine, which is held, has made so many steps more."""
        self.allow(count)
        await self.wait_until_held()

    async def wait_until_held(self):
        await until(lambda: self._is_held)


async def until(condition):
    """Wait until a condition holds; fail if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.005)


def make_demo_service(gate=None, config=None, **options):
    options = {"num_gpu_blocks_override": FEW_BLOCKS, **options}
    observers = [gate] if gate else []
    return make_service(config or ServerConfig(), None, observers, **options)


@asynccontextmanager
async def running(service, send_buffer=None):
    """Serve in this event loop; ended by SIGTERM, as a real server is."""
    listener = bind("127.0.0.1", 0)
    if send_buffer:  # accepted connections inherit it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    url = "http://{}:{}".format(*listener.getsockname())
    ready = asyncio.Event()
    task = asyncio.create_task(serve(service, listener, ready.set))
    await asyncio.wait({task, asyncio.ensure_future(ready.wait())}, return_when="FIRST_COMPLETED")
    try:
        yield url
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await task


async def open_request(url, path, body, receive_buffer=None):
    """Send a request over a bare connection, whose other end can vanish at any time."""
    address = httpx2.URL(url)
    connection = socket.create_connection((address.host, address.port))
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    reader, writer = await asyncio.open_connection(sock=connection, limit=2**14)
    request = httpx2.Request("POST", f"{url}{path}", json=body)
    head = f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(request.content)}\r\n\r\n".encode() + request.content)
    await writer.drain()
    return reader, writer


def metric(text, name, **labels):
    """The value of a metric."""
    for line in text.splitlines():
        if line.startswith(f"{name}{{") and all(f'{k}="{v}"' in line for k, v in labels.items()):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"there is no metric {name} {labels}")
