"""The options of ``minimal-vllm serve``."""

import asyncio
import json
import ssl
import subprocess
import sys
from dataclasses import fields

import httpx2
import openai
import pytest
from click.testing import CliRunner

from minimal_vllm import SamplingParams
from minimal_vllm.cli.main import main
from minimal_vllm.cli.options import FieldOption, given_options
from minimal_vllm.cli.serve import serve
from minimal_vllm.config import EngineConfig
from minimal_vllm.server.chat.request import ChatCompletionRequest
from minimal_vllm.server.completions import CompletionRequest
from minimal_vllm.server.config import ServerConfig
from tests.server.harness import (
    ENVIRONMENT,
    PATIENCE,
    Gate,
    make_demo_service,
    metric,
    open_request,
    process,
    running,
    until,
)


@pytest.fixture(scope="module")
def guarded():
    """A server with keys, and an origin from which web pages may call it."""
    origin = "--allowed-origins=https://good.example"
    with process("--api-key=first", "--api-key=second", origin) as server:
        yield server


@pytest.fixture(scope="module")
def adapted():
    """A server with many options that don't touch each other, written as vLLM writes them."""
    lists = ["--served_model_name", "one", "two", "--allowed-origins", '["https://a.example"]']
    lengths = ["--max-model-len", "1k", "--max-body-bytes=1000", "--no-async-scheduling"]
    paths = ["--root-path=/llm", "--return-tokens-as-token-ids"]
    with process(*lists, *lengths, *paths, "--enable-force-include-usage") as server:
        yield server


@pytest.mark.parametrize("request_type", [CompletionRequest, ChatCompletionRequest])
def test_every_sampling_parameter_can_be_asked_for_over_http(request_type):
    names = {field.name for field in fields(SamplingParams)} - {"detokenize"}
    assert names - request_type.model_fields.keys() == set()


def test_every_server_option_is_on_the_command_line_and_explains_itself():
    mine = {
        param.name: param
        for param in serve.params
        if isinstance(param, FieldOption) and param.owner is ServerConfig
    }
    assert mine.keys() == {field.name for field in fields(ServerConfig)}
    assert all(param.help for param in mine.values())
    assert "\nServer:" in CliRunner().invoke(main, ["serve", "--help"]).output


def test_help_imports_neither_torch_nor_fastapi():
    program = (
        "import sys\nfrom minimal_vllm.cli.main import main\n"
        "main(['serve', '--help'], standalone_mode=False)\n"
        "sys.exit(bool({'torch', 'fastapi', 'uvicorn', 'prometheus_client'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_without_its_libraries_the_command_says_what_to_install():
    program = (
        "import sys\nfrom minimal_vllm.cli.main import main\n"
        "sys.modules['uvicorn'] = None\nmain(['serve'])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == (
        "minimal-vllm: error: serve needs uvicorn, which is not installed: "
        "pip install 'minimal-vllm[server]'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--port=70000"], "port: should be less than or equal to 65535"),
        (["--ssl-keyfile=key.pem"], "ssl_keyfile needs ssl_certfile"),
        (["--enable-auto-tool-choice"], "enable_auto_tool_choice and tool_call_parser need each"),
        (["--tool-call-parser=hermes"], "enable_auto_tool_choice and tool_call_parser need each"),
        (["--ssl-certfile=/no/such.pem"], "the certificate /no/such.pem can't be used"),
        (["--max-model-len=5000", "--port=0"], "max_model_len is 5000"),
        (["--api-key="], "api_key.0: String should have at least 1 character"),
        (["--served-model-name="], "served_model_name.0: String should have at least 1 character"),
    ],
)
def test_a_bad_option_is_one_clear_line(arguments, complaint):
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_api_key_guards_all_but_monitoring(guarded):
    assert "required" in guarded.summary
    for key in ("first", "second"):
        assert guarded.client(key).models.list().data
    for key in ("third", "firs", "first2", "é"):
        headers = {"authorization": f"Bearer {key}".encode()}
        assert guarded.get("/v1/models", headers=headers).status_code == 401
    with pytest.raises(openai.AuthenticationError) as caught:
        guarded.client("third").completions.create(model="any", prompt="a")
    assert caught.value.code == "invalid_api_key"
    for path in ("/v1/models", "/v1/nothing", "//v1/models", "/openapi.json"):
        assert guarded.get(path).status_code == 401
    assert guarded.post("/tokenize", prompt="a").status_code == 401
    for path in ("/health", "/ping", "/version", "/metrics"):
        assert guarded.get(path).status_code == 200


def test_the_key_may_come_from_the_environment(monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "MINIMAL_VLLM_API_KEY", "secret")
    with process() as server:
        assert server.get("/v1/models").status_code == 401
        assert server.client("secret").models.list().data


def test_a_model_may_have_several_names(adapted):
    client = adapted.client()
    assert [model.id for model in client.models.list().data] == ["one", "two"]
    assert client.completions.create(model="two", prompt="a").model == "two"
    assert adapted.post("/v1/completions", prompt="a").json()["model"] == "one"


def test_https_with_a_certificate_of_one_s_own(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    subprocess.run(
        [*command, "-keyout", key, "-out", cert, *subject], check=True, capture_output=True
    )
    with process(f"--ssl-certfile={cert}", f"--ssl-keyfile={key}") as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=cert)
        assert server.get("/health", verify=context).status_code == 200


def test_web_pages_are_let_in_from_where_they_may_come(guarded):
    for origin, allowed in (("https://good.example", True), ("https://bad.example", False)):
        headers = {"origin": origin, "access-control-request-method": "POST"}
        preflight = guarded.request("OPTIONS", "/v1/completions", headers=headers)
        assert (preflight.status_code == 200) == allowed
        refused = guarded.get("/v1/models", headers={"origin": origin})
        assert refused.status_code == 401
        assert refused.headers.get("access-control-allow-origin") == (origin if allowed else None)


def test_while_too_many_wait_more_are_refused():
    async def run():
        gate = Gate()
        config = ServerConfig(max_waiting_requests=2)
        service = make_demo_service(gate, config, max_num_seqs=1)
        async with running(service) as url, httpx2.AsyncClient(timeout=PATIENCE) as client:
            body = {"prompt": "a", "max_tokens": 2}
            gate.shut()
            connections = []
            for waiting in (0, 1, 2):
                connections.append(await open_request(url, "/v1/completions", body))
                await until(lambda waiting=waiting: service.engine.num_waiting == waiting)
                await gate.wait_until_held()
            refused = await client.post(f"{url}/v1/completions", json=body)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["type"] == "rate_limit_error"
            gate.open()
            await until(lambda: not service.engine.num_waiting)
            assert (await client.post(f"{url}/v1/completions", json=body)).status_code == 200
            metrics = (await client.get(f"{url}/metrics")).text
            assert metric(metrics, "vllm:admission_rejections_total") == 1

    asyncio.run(run())


def test_the_body_s_limit_can_be_set(adapted):
    assert adapted.post("/v1/completions", prompt="a", max_tokens=1).status_code == 200
    assert adapted.post("/v1/completions", prompt="a" * 1000).status_code == 413


def test_lists_and_lengths_may_be_written_as_vllm_writes_them(adapted):
    (model, _) = adapted.get("/v1/models", headers={"origin": "https://b.example"}).json()["data"]
    assert model["max_model_len"] == 1000
    response = adapted.get("/v1/models", headers={"origin": "https://a.example"})
    assert response.headers["access-control-allow-origin"] == "https://a.example"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tensor-parallel-size", "1"],
        ["--quantization", "none"],
        ["--kv-cache-dtype=auto"],
        ["--speculative-config", "none"],
        ["--disable-log-stats", "--no-enable-lora"],
        ["--enable-prompt-tokens-details", "--enable-tokenizer-info-endpoint"],
        ["--enable-server-load-tracking", "--enable-request-id-headers"],
        ["--show-hidden-metrics-for-version=0.32"],
        ["--compilation-config", '{"mode": 3}', "--trust-remote-code"],
        ["--compilation-config.mode=3", "--structured-outputs-config.backend", "xgrammar"],
    ],
)
def test_a_flag_of_vllm_that_changes_nothing_is_accepted(arguments):
    assert serve.make_context("serve", arguments).params


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["--pipeline-parallel-size", "2"],
            "pipeline_parallel_size=2 is not supported: one machine",
        ),
        (["--quantization", "int3"], "'gptq', not 'int3'"),
        (["--kv-cache-dtype", "int8"], "'fp8', not 'int8'"),
        (["--speculative-config", '{"method": "ngram"}'], "num_speculative_tokens is missing"),
        (["--speculative-config.method", "medusa"], "method should be one of ngram"),
        (["--spec-method", "ngram"], "is not supported: speculative decoding is configured by"),
        (["--skip-tokenizer-init"], "skip_tokenizer_init=True is not supported: a server handles"),
        (["--enable-lora"], "enable_lora=True is not supported: LoRA adapters"),
        (["--default-chat-template-kwargs", '{"tools": []}'], "can't set tools"),
    ],
)
def test_a_flag_that_would_change_something_says_what_is_supported(arguments, complaint):
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_model_behind_a_list_is_not_taken_for_one_of_its_values(tmp_path):
    context = serve.make_context("serve", ["--api-key", "one", "two", str(tmp_path)])
    assert context.params["api_key"] == ("one", "two")
    assert context.params["model"] == str(tmp_path)


@pytest.mark.parametrize(
    ("written", "read"), [("2k", 2000), ("2K", 2048), ("1.5k", 1500), ("auto", None), ("7", 7)]
)
def test_lengths_may_have_vllms_suffixes(written, read):
    context = serve.make_context("serve", ["--max-model-len", written, "--dtype", "half"])
    assert context.params["max_model_len"] == read
    assert EngineConfig(model="m", **given_options(context, EngineConfig)).dtype == "float16"


def test_behind_a_proxy_paths_may_have_the_proxys_prefix(adapted):
    for prefix in ("", "/llm"):
        assert adapted.get(f"{prefix}/v1/models").status_code == 200
        answer = adapted.post(f"{prefix}/v1/completions", prompt="a", max_tokens=1, logprobs=1)
        (token,) = answer.json()["choices"][0]["logprobs"]["tokens"]
        assert token.startswith("token_id:")


def test_usage_can_be_forced_into_every_chunk_of_every_stream(adapted):
    body = {"stream": True, "max_tokens": 3, "ignore_eos": True}
    for path, prompt in (
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    ):
        answer = adapted.post(path, **prompt, **body, stream_options={"include_usage": False})
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line]
        chunks = [json.loads(line) for line in lines if line != "[DONE]"]
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)
        assert counts[-1] == 3
        assert chunks[-1]["choices"] == []


@pytest.mark.parametrize(
    ("content_format", "written"),
    [("auto", "Hi"), ("string", "Hi"), ("openai", "[{'type': 'text', 'text': 'Hi'}]")],
)
def test_the_content_of_messages_has_the_format_that_is_asked_for(content_format, written):
    async def run():
        config = ServerConfig(chat_template_content_format=content_format)
        service = make_demo_service(config=config, chat_template="{{ messages[0]['content'] }}")
        async with running(service) as url, httpx2.AsyncClient(timeout=PATIENCE) as client:
            body = {"messages": [{"role": "user", "content": "Hi"}]}
            tokens = (await client.post(f"{url}/tokenize", json=body)).json()["tokens"]
            answer = await client.post(f"{url}/detokenize", json={"tokens": tokens})
            assert answer.json()["prompt"] == written

    asyncio.run(run())


def test_default_sampling_and_template_variables_can_be_set(tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{{ mood }}{{ messages[0]['content'] }}")
    arguments = [
        *("--override-generation-config", '{"temperature": 0.0, "max_new_tokens": 3}'),
        *("--default-chat-template-kwargs", '{"mood": "glad"}'),
        *("--chat-template", str(template), "--enable-log-requests"),
    ]
    with process(*arguments) as server:
        body = {"messages": [{"role": "user", "content": " day"}], "model": "minimal-vllm-demo"}
        for kwargs, mood in (({}, "glad"), ({"mood": "sad"}, "sad")):
            tokens = server.post("/tokenize", **body, chat_template_kwargs=kwargs).json()["tokens"]
            assert server.post("/detokenize", tokens=tokens).json()["prompt"] == f"{mood} day"
        answers = [server.post("/v1/chat/completions", **body).json() for _ in range(2)]
        assert answers[0]["choices"] == answers[1]["choices"]
        assert answers[0]["usage"]["completion_tokens"] <= 3
        server.terminate()
        _, log = server.wait()
    assert "temperature=0.0" in log
