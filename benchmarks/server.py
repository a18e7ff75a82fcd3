"""Server under test: ``minimal-vllm serve`` in its own process, as in production."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.request import urlopen

import psutil
from prometheus_client.parser import text_string_to_metric_families

START_TIMEOUT = 600.0
"""Time limit in seconds for the server to be ready."""

STOP_TIMEOUT = 60.0
"""Time limit in seconds for an idle server to end."""


@dataclass(frozen=True)
class Server:
    """Server that is ready for requests."""

    url: str
    process: psutil.Process

    @property
    def rss(self) -> int:
        """RAM of the process in bytes."""
        return int(self.process.memory_info().rss)

    @property
    def cpu_time(self) -> float:
        """CPU time of the process in seconds."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    @property
    def loop_cpu_time(self) -> float:
        """CPU time of its main thread, which runs the event loop, in seconds."""
        main = next(each for each in self.process.threads() if each.id == self.process.pid)
        return float(main.user_time + main.system_time)

    def stop(self) -> None:
        """End the server as an operator does, and wait until it has ended."""
        self.process.terminate()
        self.process.wait(STOP_TIMEOUT)

    def metrics(self) -> dict[str, float]:
        """Return the values of the metrics by name.

        If a metric has a finish reason, ``{reason}`` follows its name.
        """
        with urlopen(f"{self.url}/metrics", timeout=60) as response:
            text = response.read().decode()
        return {
            sample.name + _reason(sample.labels): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def _reason(labels: dict[str, str]) -> str:
    return f"{{{labels['finished_reason']}}}" if "finished_reason" in labels else ""


@contextmanager
def serving(
    *options: str, threads: int | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run a server on any free port.

    Args:
        options: Options of the command, and the model. Default: the built-in one.
        threads: Number of threads for the model. Default: PyTorch's choice.
        variables: Environment variables to add.

    Raises:
        RuntimeError: If the server did not start; the message contains its output.
    """
    command = [sys.executable, "-m", "minimal_vllm", "serve", "--port=0", *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(variables or {})}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
    ):
        try:
            yield Server(_wait_for_url(process, log.fileno()), psutil.Process(process.pid))
        finally:
            process.kill()


def _wait_for_url(process: subprocess.Popen[bytes], log: int) -> str:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        written = os.pread(log, 2**16, 0).decode()
        if found := re.search(r"Serving at +(\S+)\n", written):
            return found[1]
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start:\n{written}")
        time.sleep(0.05)
