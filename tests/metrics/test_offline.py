"""Metrics of an engine without a server say what has happened to its requests."""

import sys

import pytest

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.metrics.reader import Counter, Gauge, Histogram

PROMPTS = ["Hello, my name is", "It was a dark and stormy night, and the rain fell"]
PARAMS = SamplingParams(temperature=1.0, seed=1, max_tokens=5, ignore_eos=True, n=2)


def make_llm(**options):
    return LLM(num_gpu_blocks_override=64, dtype="float32", **options)


@pytest.fixture(scope="module")
def llm():
    return make_llm(disable_log_stats=False)


def read(llm, name, **labels):
    """Return the only metric of this name that has these labels."""
    (found,) = [
        metric
        for metric in llm.get_metrics()
        if metric.name == f"vllm:{name}" and labels.items() <= metric.labels.items()
    ]
    return found


def test_counters_count_the_tokens_and_the_requests_of_outputs():
    llm = make_llm(disable_log_stats=False)
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    assert isinstance(read(llm, "generation_tokens"), Counter)
    assert read(llm, "generation_tokens").value == 2 * len(PROMPTS) * 5
    assert read(llm, "request_success", finished_reason="length").value == 4
    assert read(llm, "request_params_n").sum == 2 * read(llm, "request_params_n").count == 4
    assert read(llm, "request_params_max_tokens").sum == 4 * 5
    num_tokens = sum(2 * len(output.prompt_token_ids) for output in outputs)
    assert read(llm, "prompt_tokens").value == num_tokens


def test_histograms_have_an_observation_for_each_request(llm):
    before = read(llm, "e2e_request_latency_seconds").count
    llm.generate(PROMPTS, SamplingParams(max_tokens=3), use_tqdm=False)
    latency = read(llm, "e2e_request_latency_seconds")
    assert isinstance(latency, Histogram)
    assert latency.count == before + len(PROMPTS)
    assert list(latency.buckets)[-1] == "+Inf"
    assert latency.buckets["+Inf"] == latency.count
    assert list(latency.buckets.values()) == sorted(latency.buckets.values())
    assert latency.sum > 0


def test_gauges_show_an_idle_engine_and_labels_show_its_settings(llm):
    assert isinstance(read(llm, "num_requests_running"), Gauge)
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert read(llm, name).value == 0
    assert read(llm, "cache_config_info").labels["num_gpu_blocks"] == "64"


def test_requests_that_were_aborted_or_forgotten_do_not_stay(llm):
    aborted = read(llm, "request_success", finished_reason="abort").value
    for name in ("aborted", "forgotten"):
        llm.engine.add_request(name, [1, 2, 3], SamplingParams(max_tokens=9))
    llm.engine.step()
    llm.engine.abort("aborted")
    llm.engine.reset()
    assert read(llm, "request_success", finished_reason="abort").value == aborted + 1
    llm.engine.add_request("forgotten", [1, 2, 3], SamplingParams(max_tokens=1))
    ended = read(llm, "request_success", finished_reason="length").value
    llm.engine.step()
    assert read(llm, "request_success", finished_reason="length").value == ended + 1


def test_without_metrics_the_error_says_how_to_collect_them():
    with pytest.raises(ValueError, match="disable_log_stats=False"):
        make_llm().get_metrics()


def test_without_prometheus_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for name in [name for name in sys.modules if name.startswith("minimal_vllm.metrics.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match=r"prometheus_client.*pip install 'minimal-vllm\[server"):
        make_llm(disable_log_stats=False)
