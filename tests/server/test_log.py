"""The server's log: one line tells of each request, and its id finds it."""

import asyncio
import logging
import re

import httpx2
import openai
import pytest

from tests.server.harness import MODEL, PATIENCE, make_demo_service, process, running


def test_every_answer_s_id_is_in_the_log_and_every_refusal_s_with_its_reason():
    with process("--api-key=secret") as server:
        with server.client("secret") as client:
            answer = client.completions.create(model=MODEL, prompt="a", max_tokens=2, user="Ann\n")
            with pytest.raises(openai.BadRequestError) as caught:
                client.completions.create(model=MODEL, prompt="a", top_p=2)
        refused = server.get("/v1/models")
        server.terminate()
        status, log = server.wait()
    assert status == 0, log
    lines = {match[1]: line for line in log.splitlines() if (match := ID.search(line))}
    assert lines.keys() == {answer.id, caught.value.request_id, refused.headers["x-request-id"]}
    done = lines[answer.id]
    assert r"user='Ann\n' prompt_tokens=1 cached_tokens=0 completion_tokens=2" in done
    assert done.endswith("end='length'")
    bad = lines[caught.value.request_id]
    assert "method=POST path='/v1/completions' status=400" in bad
    assert "top_p: should be less than or equal to 1" in bad
    assert "path='/v1/models' status=401" in lines[refused.headers["x-request-id"]]


ID = re.compile(r"request_id=(\S+)")


def test_what_nobody_foresaw_is_a_500_whose_id_finds_the_traceback(caplog):
    async def run():
        service = make_demo_service()
        tokenizer = service.llm.tokenizer

        def fail(*arguments, **options):
            raise KeyError("secret of the house")

        tokenizer.decode = fail
        async with running(service) as url, httpx2.AsyncClient(timeout=PATIENCE) as client:
            return await client.post(f"{url}/detokenize", json={"tokens": [5]})

    with caplog.at_level(logging.INFO, logger="minimal_vllm"):
        response = asyncio.run(run())
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text
    (record,) = (record for record in caplog.records if record.exc_info)
    assert response.headers["x-request-id"] in record.getMessage()
    assert "secret of the house" in caplog.text
