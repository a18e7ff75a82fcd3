"""The server keeps to its own OpenAPI description, whatever is sent: Schemathesis makes that up."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.harness import PATIENCE, process

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 15
BODIES = {
    "/v1/completions": {"prompt": "It was"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "Hello"}]},
    "/tokenize": {"prompt": "It was"},
    "/detokenize": {"tokens": [5, 6]},
}
STREAMED = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
GETS = (
    "/v1/models",
    "/v1/models/{model}",
    "/health",
    "/load",
    "/tokenizer_info",
    "/version",
    "/metrics",
)


@pytest.fixture(scope="module")
def api():
    with process("--max-model-len=32", "--scheduling-policy=priority") as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_all_operations_are_tested_here(api):
    described = {(path, method.upper()) for path in api for method in api[path]}
    assert described == {*((path, "POST") for path in BODIES), *((path, "GET") for path in GETS)}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("mode", GenerationMode)
def test_no_body_gets_a_500_or_an_answer_that_is_not_described(api, path, mode):
    operation = api[path]["POST"]
    statuses = set()

    @given(case=operation.as_strategy(generation_mode=mode), stream=st.booleans())
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    def check(case, stream):
        if stream and path in STREAMED and isinstance(case.body, dict):
            case.body["stream"] = True
        response = case.call_and_validate(checks=CHECKS, timeout=PATIENCE)
        while response.status_code in (400, 404) and (wrong := wrong_field(case, response)):
            case.body.pop(wrong)
            case.body = {**BODIES[path], **case.body}
            response = case.call_and_validate(checks=CHECKS, timeout=PATIENCE)
        statuses.add(response.status_code)

    check()
    assert 200 in statuses  # not all were refused


def wrong_field(case, response):
    """What the server says is wrong with a body, or else some field that may be; None: nothing."""
    if not isinstance(case.body, dict):
        return None
    known = BODIES[case.operation.path]
    unsure = [name for name, value in case.body.items() if known.get(name) != value]
    error = response.json()["error"]
    name = (error.get("param") or error["message"].partition(":")[0]).partition(".")[0]
    return name if name in unsure else next(iter(unsure), None)
