"""More clients than the system allows connections."""

import asyncio
import resource

import httpx2
import pytest

from minimal_vllm.server import http_server
from tests.server.harness import PATIENCE, process

BODY = {"prompt": "It was", "max_tokens": 3, "ignore_eos": True}
FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from minimal_vllm.cli.main import main
main()
"""


def test_more_clients_than_files_are_served_one_after_the_other_and_fill_no_log():
    with process(start=("-c", FEW_FILES)) as server:
        server.post("/v1/completions", **BODY)  # Python opens more files when it first does a thing

        async def ask_all():
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
            async with httpx2.AsyncClient(timeout=PATIENCE, limits=limits) as client:
                url = f"{server.url}/v1/completions"
                return await asyncio.gather(*(client.post(url, json=BODY) for _ in range(150)))

        assert {each.status_code for each in asyncio.run(ask_all())} == {200}
        server.terminate()
        _, log = server.wait()
        assert 0 < log.count("Too many open files") < 200


@pytest.mark.parametrize(
    ("limits", "raised_to"),
    [
        ((1024, 4096), 4096),
        ((1024, 10**6), 65_535),
        ((1024, resource.RLIM_INFINITY), 65_535),
        ((10**5, 10**6), None),
        ((4096, 4096), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_a_server_asks_for_as_many_files_as_it_may_have(monkeypatch, limits, raised_to):
    asked = []
    monkeypatch.setattr(http_server.resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(http_server.resource, "setrlimit", lambda _, new: asked.append(new))
    http_server.allow_many_connections()
    assert asked == ([] if raised_to is None else [(raised_to, limits[1])])
