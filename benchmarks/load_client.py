"""Clients that load a server: several processes, each of which streams many completions at once.

They do as little as possible per token, so that they can be faster than the server: a connection
per request, no HTTP library, and no JSON but the last event's.
"""

import asyncio
import gc
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from random import Random
from typing import cast
from urllib.parse import urlsplit

from minimal_vllm_lab.stats.arrivals import arrival_times

START_DELAY = 0.2
"""Seconds from the moment when all client processes are ready to the beginning of the traffic."""
TIMEOUT = 300.0
"""Seconds after which a request has failed."""
USAGE = re.compile(rb'"completion_tokens":(\d+)')


@dataclass(frozen=True)
class Traffic:
    """Requests that arrive at random. All have the same length."""

    rate: float
    """Requests per second; infinite: all arrive at once."""
    num_requests: int
    prompt_len: int
    output_len: int
    vocab_size: int
    """Prompts are made of random tokens below this one."""
    seed: int = 0

    def prompt(self, index: int) -> list[int]:
        """Return the token ids of one prompt."""
        random = Random(f"{self.seed}-{index}")
        return random.choices(range(1, self.vocab_size), k=self.prompt_len)


@dataclass(slots=True)
class Answer:
    """What one client saw. Times are those of ``time.time``, in seconds."""

    sent: float = 0.0
    events: list[float] = field(default_factory=list)
    """Arrivals of events with text."""
    num_tokens: int = 0
    """Number of tokens that the server counted."""
    error: str = ""

    @property
    def ttft(self) -> float:
        """Time to the first token."""
        return self.events[0] - self.sent

    @property
    def tpot(self) -> float:
        """Mean time per token after the first."""
        return (self.events[-1] - self.events[0]) / max(1, self.num_tokens - 1)

    @property
    def itl(self) -> list[float]:
        """Gaps between events; 0 between events that arrive together."""
        return [later - earlier for earlier, later in pairwise(self.events)]


class Client(asyncio.Protocol):
    """One request: sends it when connected, and notes when events arrive."""

    def __init__(self, request: bytes, answer: Answer, ended: "asyncio.Future[None]") -> None:
        self._request = request
        self._answer = answer
        self._ended = ended
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note the events in what was received, wherever it was cut."""
        now = time.time()
        received = self._tail + data
        num_events = received.count(b'"text":') - self._tail.count(b'"text":')
        self._answer.events += [now] * num_events
        self._tail = received[-1024:]
        if b"data: [DONE]" in self._tail or b'"error":' in self._tail:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Fail if the stream hasn't ended."""
        self._end()

    def _end(self) -> None:
        if self._ended.done():
            return
        self._ended.set_result(None)
        self._transport.close()
        counted = USAGE.search(self._tail)
        if counted and self._answer.events:
            self._answer.num_tokens = int(counted[1])
        else:
            self._answer.error = self._tail.decode(errors="replace") or "the connection was closed"


def send_traffic(url: str, traffic: Traffic, num_processes: int) -> list[Answer]:
    """Send the requests from some processes, and return what became of each."""
    context = get_context("spawn")
    all_ready = context.Barrier(num_processes)
    processes, results = [], []
    for number in range(num_processes):
        share = range(number, traffic.num_requests, num_processes)
        result, theirs = context.Pipe(duplex=False)
        arguments = (url, traffic, share, all_ready, theirs)
        process = context.Process(target=send_share, args=arguments)
        process.start()
        theirs.close()  # so that ``recv`` fails if the process does
        processes.append(process)
        results.append(result)
    answers = [answer for result in results for answer in result.recv()]
    for process in processes:
        process.join()
    return answers


def send_share(
    url: str,
    traffic: Traffic,
    share: Sequence[int],
    all_ready: Barrier,
    result: Connection,
) -> None:
    """Send some of the requests from this process, each at its time, and report their answers."""
    times = arrival_times(traffic.rate, 1.0, traffic.seed, stretched_to=traffic.num_requests)
    arrivals = list(times)
    address = urlsplit(url)
    requests = [write_request(address.netloc, traffic, index) for index in share]
    gc.collect()
    gc.disable()
    all_ready.wait()
    begin = time.time() + START_DELAY

    async def send_all() -> list[Answer]:
        return await asyncio.gather(
            *(
                send_one(
                    str(address.hostname), int(address.port or 80), request, begin + arrivals[index]
                )
                for request, index in zip(requests, share, strict=True)
            )
        )

    result.send(asyncio.run(send_all()))


def write_request(host: str, traffic: Traffic, index: int) -> bytes:
    """Return the bytes of one request."""
    body = {
        "prompt": traffic.prompt(index),
        "max_tokens": traffic.output_len,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def send_one(host: str, port: int, request: bytes, at: float) -> Answer:
    """Send a request at a time, and wait for the end of its stream."""
    await asyncio.sleep(at - time.time())
    loop = asyncio.get_running_loop()
    answer, ended = Answer(sent=time.time()), loop.create_future()
    try:
        await loop.create_connection(lambda: Client(request, answer, ended), host, port)
        await asyncio.wait_for(ended, TIMEOUT)
    except (OSError, TimeoutError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    return answer
