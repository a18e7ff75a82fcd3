"""The benchmarks as commands: against real servers, and on the engine with a tiny model."""

import asyncio
import json
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from minimal_vllm.cli.main import main
from minimal_vllm.trace.step_record import RequestRecord
from minimal_vllm_lab.bench.report import SUMMARY
from minimal_vllm_lab.commands.bench import serve as serve_command
from minimal_vllm_lab.trace.reader import open_trace
from tests.server.harness import MODEL, metric, process, until

SHORT = ["--random-input-len=12", "--random-output-len=5"]
VLLM_FIELDS = {
    *("date", "endpoint_type", "backend", "label", "model_id", "num_prompts", "request_rate"),
    *("burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens"),
    *("total_output_tokens", "request_throughput", "request_goodput", "output_throughput"),
    *("total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests"),
    *(
        f"{statistic}_{name}_ms"
        for name in ("ttft", "tpot", "itl", "e2el")
        for statistic in ("mean", "median", "std", "p99")
    ),
}
"""Fields of `vllm bench serve --save-result`, except those that do not apply to this engine."""


@pytest.fixture(scope="module")
def server():
    with process() as server:
        yield server


@pytest.fixture
def bench(server):
    """Run ``bench serve`` against the server."""

    def bench(*arguments, url=server.url):
        return invoke("serve", f"--base-url={url}", *arguments)

    return bench


def invoke(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def read(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.iterdir())]


def test_a_run_is_reported_and_saved_with_vllm_s_fields_and_exact_lengths(bench, tmp_path):
    arguments = ["--num-prompts=6", "--num-warmups=2", "--save-result", f"--result-dir={tmp_path}"]
    result = bench(*SHORT, *arguments, "--goodput", "ttft:100000", "tpot:100000")
    assert (result.exit_code, result.stderr) == (0, "")
    (saved,) = read(tmp_path)
    assert saved.keys() == VLLM_FIELDS
    assert saved["model_id"] == MODEL
    assert (saved["completed"], saved["failed"]) == (6, 0)
    assert (saved["total_input_tokens"], saved["total_output_tokens"]) == (72, 30)
    assert saved["request_goodput"] == saved["request_throughput"] > 0
    assert saved["mean_e2el_ms"] >= saved["mean_ttft_ms"] > 0  # equal if all is read at once
    assert "Successful requests:                     6\n" in result.stdout
    assert f"Mean TPOT (ms):                          {saved['mean_tpot_ms']:.2f}" in result.stdout


def test_a_server_that_guesses_is_reported_as_by_vllm(tmp_path):
    guessing = '{"method": "draft_model", "num_speculative_tokens": 3}'
    with process(f"--speculative-config={guessing}", "--num-gpu-blocks-override=300") as server:
        result = invoke(
            *("serve", f"--base-url={server.url}", *SHORT, "--num-prompts=4"),
            *(
                "--random-output-len=20",
                "--max-concurrency=1",
                "--save-result",
                f"--result-dir={tmp_path}",
            ),
        )
    assert result.exit_code == 0, result.output
    (saved,) = read(tmp_path)
    assert saved.keys() - VLLM_FIELDS == {
        f"spec_decode_{name}"
        for name in (
            *("acceptance_rate", "acceptance_length", "num_drafts", "draft_tokens"),
            *("accepted_tokens", "per_position_acceptance_rates"),
        )
    }
    assert 0 < saved["spec_decode_num_drafts"] <= saved["spec_decode_draft_tokens"]
    rate = saved["spec_decode_accepted_tokens"] / saved["spec_decode_draft_tokens"]
    assert saved["spec_decode_acceptance_rate"] == pytest.approx(100 * rate)
    lines = result.stdout.splitlines()
    start = lines.index("---------------Speculative Decoding---------------")
    labels = [line.partition(":")[0] for line in lines[start + 1 : lines.index("=" * 50)]]
    assert labels[:6] == [
        *("Acceptance rate (%)", "Acceptance length", "Drafts", "Draft tokens"),
        *("Accepted tokens", "Per-position acceptance (%)"),
    ]
    assert len(labels[6:]) == len(saved["spec_decode_per_position_acceptance_rates"])


def test_conversations_are_measured_too(bench, tmp_path):
    arguments = ["--endpoint=/v1/chat/completions", "--num-prompts=3", "--save-result"]
    result = bench(*SHORT, *arguments, "--result-filename=chat.json", f"--result-dir={tmp_path}")
    assert result.exit_code == 0, result.output
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert (saved["backend"], saved["completed"], saved["total_output_tokens"]) == (
        "openai-chat",
        3,
        15,
    )
    assert saved["total_input_tokens"] >= 3 * 12  # the template adds some


def test_repeated_prefixes_are_found_in_the_server_s_cache(server, bench):
    def hits():
        return metric(server.get("/metrics").text, "vllm:prefix_cache_hits_total")

    before = hits()
    dataset = ["--dataset-name=prefix_repetition", "--prefix-repetition-num-prefixes=2"]
    lengths = ["prefix-len=64", "suffix-len=8", "output-len=2"]
    options = [f"--prefix-repetition-{each}" for each in lengths]
    result = bench(*dataset, *options, "--num-prompts=8", "--max-concurrency=1")
    assert result.exit_code == 0, result.output
    assert hits() - before == (8 - 2) * 64


def test_several_rates_are_run_with_new_prompts_and_drawn(server, bench, tmp_path):
    def hits():
        return metric(server.get("/metrics").text, "vllm:prefix_cache_hits_total")

    before = hits()
    plot = tmp_path / "latency.svg"
    results = tmp_path / "results"
    lengths = ["--random-input-len=40", "--random-output-len=2", "--num-prompts=4", "--seed=5"]
    saving = ["--save-result", "--save-detailed", f"--result-dir={results}", f"--plot={plot}"]
    result = bench(*lengths, *saving, "--request-rate", "20", "50", "--metric-percentiles=50,90")
    assert result.exit_code == 0, result.output
    assert hits() == before
    saved = read(results)
    assert {each["request_rate"] for each in saved} == {20.0, 50.0}
    assert {f"p{percent}_itl_ms" in each for each in saved for percent in (50, 90)} == {True}
    assert {len(each["ttfts"]) for each in saved} == {4}
    assert saved[0]["generated_texts"][0]
    assert "<svg" in plot.read_text()
    table = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in table[table.index([*SUMMARY]) + 1 :][:2]] == ["20.00", "50.00"]


def test_failed_requests_are_counted_and_their_reason_is_reported(tmp_path):
    with process("--max-waiting-requests=1", "--max-num-seqs=1") as server:
        result = invoke(
            *("serve", f"--base-url={server.url}", "--random-input-len=8", "--num-prompts=20"),
            *("--random-output-len=100", "--save-result", "--save-detailed"),
            *(f"--result-dir={tmp_path}", "--goodput", "ttft:100000"),
        )
    assert result.exit_code == 0, result.output
    (saved,) = read(tmp_path)
    assert saved["completed"] >= 1
    assert saved["failed"] >= 1
    assert saved["completed"] + saved["failed"] == 20
    assert saved["total_output_tokens"] == 100 * saved["completed"]
    assert saved["request_goodput"] == saved["request_throughput"]
    assert sum("HTTP 429: " in error for error in saved["errors"]) == saved["failed"]
    assert f"Failed requests:                         {saved['failed']}\n" in result.stdout
    assert "of 20 requests failed: HTTP 429: " in result.stderr


def test_if_all_fail_the_command_does(bench):
    result = bench("--random-input-len=5000", "--num-prompts=3")
    assert result.exit_code == 2
    assert "all 3 requests to " in result.stderr
    assert "the first with: HTTP 400: This model's maximum context length is" in result.stderr


def test_a_server_that_is_not_there_is_one_clear_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nothing listens on this port
        result = invoke("serve", f"--port={taken.getsockname()[1]}")
    assert result.exit_code == 2
    assert result.stderr.startswith("minimal-vllm: error: no server answers at http://127.0.0.1:")
    assert result.stderr.count("\n") == 1


def test_the_api_key_is_sent_and_a_missing_key_is_reported(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with process("--api-key=secret") as server:
        arguments = ["serve", f"--base-url={server.url}", *SHORT, "--num-prompts=1"]
        refused = invoke(*arguments)
        assert "HTTP 401: this server needs its API key" in refused.stderr
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        assert invoke(*arguments).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--plot=a.png"], "--plot needs a --request-rate"),
        (["--plot=a.xyz", "--request-rate=1"], "its suffix must be one of"),
        (["--plot=/no/such/folder/a.png", "--request-rate=1"], "its folder does not exist"),
        (["--save-detailed"], "--save-detailed needs --save-result"),
        (["--result-filename=a"], "--result-filename needs --save-result"),
        (["--result-dir=a"], "--result-dir needs --save-result"),
        (["--label=a"], "--label needs --save-result"),
        (["--burstiness=2"], "--burstiness needs a --request-rate"),
        (["--base-url=http://a"], "--port can't be used with --base-url"),
        (
            ["--request-rate", "1", "2", "--save-result", "--result-filename=a"],
            "--result-filename needs a single --request-rate",
        ),
        (["--prefix-repetition-prefix-len=4"], "needs --dataset-name=prefix_repetition"),
        (
            ["--dataset-name=prefix_repetition", "--random-input-len=4"],
            "--random-input-len needs --dataset-name=random",
        ),
        (["--goodput", "ttft"], "goodput: a service level objective lists limits"),
        (["--num-prompts", "1", "2"], "unexpected extra argument (2)"),
        (["--goodput"], "requires an argument"),
    ],
)
def test_a_bad_option_is_reported_before_anything_is_sent(arguments, complaint):
    result = invoke("serve", "--port=1", *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr


def test_the_options_that_take_several_values_are_those_that_can_be_repeated():
    lists = {"--request-rate", "--goodput"}
    assert {param.opts[0] for param in serve_command.params if param.multiple} == lists
    context = serve_command.make_context("serve", ["--request_rate", "1", "2", "--goodput=ttft:5"])
    assert context.params["request_rate"] == (1.0, 2.0)


def test_throughput_completes_all_tokens_asked_for(model, tmp_path):
    path = tmp_path / "result.json"
    arguments = ["--num-prompts=5", "--input-len=10", "--output-len=4", "--n=2"]
    engine = [f"--model={model}", "--num-gpu-blocks-override=64", f"--output-json={path}"]
    result = invoke("throughput", *arguments, *engine)
    assert result.exit_code == 0, result.output
    saved = json.loads(path.read_text())
    assert (saved["num_requests"], saved["total_num_tokens"]) == (5, 5 * 10 + 5 * 2 * 4)
    assert saved["tokens_per_second"] == saved["total_num_tokens"] / saved["elapsed_time"]
    assert f"Throughput: {saved['requests_per_second']:.2f} requests/s" in result.stdout
    assert "Total num output tokens:  40\n" in result.stdout


def test_latency_reports_the_iterations_after_the_warm_up(model, tmp_path):
    path = tmp_path / "result.json"
    arguments = ["--batch-size=2", "--input-len=8", "--output-len=3", "--disable-detokenize"]
    counts = ["--num-iters-warmup=1", "--num-iters=3", f"--output-json={path}"]
    result = invoke("latency", *arguments, *counts, f"--model={model}")
    assert result.exit_code == 0, result.output
    saved = json.loads(path.read_text())
    assert saved.keys() == {"avg_latency", "std_latency", "latencies", "percentiles"}
    assert len(saved["latencies"]) == 3
    assert f"Avg latency: {saved['avg_latency']} seconds" in result.stdout
    assert f"99% percentile latency: {saved['percentiles']['99']} seconds" in result.stdout


@pytest.mark.parametrize(
    ("command", "num_requests"),
    [(["throughput", "--num-prompts=2"], 2), (["latency", "--batch-size=1", "--num-iters=2"], 3)],
)
def test_what_is_measured_is_traced_with_its_warm_up(command, num_requests, model, tmp_path):
    path = tmp_path / "trace.jsonl"
    counts = ["--num-iters-warmup=1"] if command[0] == "latency" else []
    engine = [f"--model={model}", "--num-gpu-blocks-override=64", f"--trace={path}"]
    result = invoke(*command, *counts, "--input-len=8", "--output-len=3", *engine)
    assert result.exit_code == 0, result.output
    with open_trace(path) as (_, lines):
        assert sum(isinstance(line, RequestRecord) for line in lines) == num_requests


@pytest.mark.parametrize("command", ["throughput", "latency"])
def test_a_request_that_does_not_fit_is_rejected_instead_of_being_cut_short(command, model):
    result = invoke(command, f"--model={model}", "--input-len=60", "--max-model-len=64")
    assert result.exit_code == 2
    assert "a request has 188 tokens, counting prompt and output, but" in result.stderr


@pytest.mark.parametrize("command", ["serve", "throughput", "latency"])
def test_help_is_fast_because_it_imports_nothing_heavy(command):
    program = (
        "import sys\nfrom minimal_vllm.cli.main import main\n"
        f"main(['bench', '{command}', '--help'], standalone_mode=False)\n"
        "sys.exit(bool({'torch', 'numpy', 'aiohttp', 'matplotlib'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("library", "arguments"),
    [("aiohttp", []), ("matplotlib", ["--request-rate=1", "--plot=a.png"])],
)
def test_without_its_libraries_the_command_says_what_to_install(library, arguments):
    program = (
        "import sys\nfrom minimal_vllm.cli.main import main\n"
        f"sys.modules['{library}'] = None\nmain({['bench', 'serve', *arguments]})"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 2
    assert f"needs {library}" in result.stderr
    assert "pip install 'minimal-vllm[bench]'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_server_is_clean_after_all_this(server):
    def value(name):
        return metric(server.get("/metrics").text, f"vllm:{name}")

    # A client that went away is noticed between two steps.
    asyncio.run(until(lambda: value("num_requests_running") == 0))
    assert value("kv_cache_usage_perc") == 0
