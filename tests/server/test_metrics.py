"""What Prometheus and vLLM's Grafana dashboards find at /metrics."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.harness import MODEL, process

PROMPT = "It was a dark and stormy night, and " * 4

ENGINE = {"model_name", "engine"}
HISTOGRAMS = (
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_inference_time_seconds",
    "iteration_tokens_total",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_prefill_kv_computed_tokens",
    "request_max_num_generation_tokens",
    "request_num_preemptions",
    "request_params_n",
    "request_params_max_tokens",
)
SERIES = [
    *((f"vllm:{name}_bucket", ENGINE | {"le"}, {}) for name in HISTOGRAMS),
    *((f"vllm:{name}_{part}", ENGINE, {}) for name in HISTOGRAMS for part in ("sum", "count")),
    *(
        (f"vllm:{name}", ENGINE, {})
        for name in (
            "num_requests_running",
            "num_requests_waiting",
            "kv_cache_usage_perc",
            "prefix_cache_queries_total",
            "prefix_cache_hits_total",
            "num_preemptions_total",
            "prompt_tokens_total",
            "prompt_tokens_cached_total",
            "generation_tokens_total",
        )
    ),
    *(
        ("vllm:num_requests_waiting_by_reason", ENGINE, {"reason": reason})
        for reason in ("capacity", "deferred")
    ),
    *(
        ("vllm:prompt_tokens_by_source_total", ENGINE, {"source": source})
        for source in ("local_compute", "local_cache_hit", "external_kv_transfer")
    ),
    ("vllm:prompt_tokens_cached_by_source_total", ENGINE, {"source": "device"}),
    *(
        ("vllm:request_success_total", ENGINE, {"finished_reason": reason})
        for reason in ("stop", "length", "abort", "error")
    ),
    *(
        ("vllm:engine_sleep_state", ENGINE, {"sleep_state": state})
        for state in ("awake", "discard_all")
    ),
    (
        "vllm:cache_config_info",
        {
            "engine",
            "num_gpu_blocks",
            "block_size",
            "kv_cache_size_tokens",
            "kv_cache_max_concurrency",
            "cache_dtype",
            "gpu_memory_utilization",
            "enable_prefix_caching",
            "prefix_caching_hash_algo",
        },
        {},
    ),
    (
        "vllm:admission_rejections_total",
        {"model_name"},
        {"model_name": MODEL, "reason": "max_num_queued_reqs"},
    ),
    *(
        (f"vllm:spec_decode_num_{name}_total", {"model_name"}, {})
        for name in ("drafts", "draft_tokens", "accepted_tokens")
    ),
    ("http_requests_total", {"handler"}, {"status": "2xx"}),
    ("http_requests_total", {"handler"}, {"status": "4xx"}),
    *((f"http_request_duration_seconds_{part}", {"handler"}, {}) for part in ("sum", "count")),
    *(
        (f"process_{name}", set(), {})
        for name in (
            "start_time_seconds",
            "cpu_seconds_total",
            "resident_memory_bytes",
            "open_fds",
            "max_fds",
        )
    ),
]
"""Name, labels by which it is filtered or grouped, and labels with the value that is asked for.

From the expressions of the dashboards Overview, Instances, KV Cache and Service Status in vLLM's
examples/observability/dashboards/grafana (November 2026), and of the single one before them. Left
out is what belongs to things that are not here: KV connectors and offloading, the caches of
multimodal inputs, LoRA, sleeping, weight updates and FLOPs.
"""

OBJECTIVES = {
    "time_to_first_token_seconds": ("0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0", "10.0"),
    "request_time_per_output_token_seconds": (
        *("0.025", "0.05", "0.075", "0.1", "0.15", "0.2", "0.3", "0.5"),
    ),
}
"""The latencies among which the dashboard Overview lets one choose."""


@pytest.fixture(scope="module")
def families():
    """What Prometheus's parser reads from a server that has served a little."""
    with process() as server:
        body = {"prompt": PROMPT, "ignore_eos": True, "max_tokens": 8}
        for n in (1, 3):
            assert server.post("/v1/completions", **body, n=n).status_code == 200
        assert server.post("/v1/completions", **body, top_p=2).status_code == 400
        assert server.get("/v1/nothing").status_code == 404
        assert server.request("BREW", "/v1/models").status_code == 405
        assert server.get("/health").status_code == 200
        text = server.get("/metrics").text
    return list(text_string_to_metric_families(text))


@pytest.fixture(scope="module")
def samples(families):
    return [sample for family in families for sample in family.samples]


def name_case(part):
    """The same in each process: a set's own order is not."""
    return " ".join(sorted(part)) if isinstance(part, set) else str(part)


@pytest.mark.parametrize(("name", "labels", "values"), SERIES, ids=name_case)
def test_every_series_of_vllm_s_dashboards_is_there_with_its_labels(samples, name, labels, values):
    found = [
        sample.labels
        for sample in samples
        if sample.name == name and values.items() <= sample.labels.items()
    ]
    assert found
    assert all(labels <= each.keys() for each in found)
    if labels >= ENGINE:
        assert {(each["model_name"], each["engine"]) for each in found} == {(MODEL, "0")}


@pytest.mark.parametrize(("name", "bounds"), OBJECTIVES.items())
def test_the_objectives_of_the_dashboards_are_bounds_of_buckets(samples, name, bounds):
    found = {s.labels["le"] for s in samples if s.name == f"vllm:{name}_bucket"}
    assert set(bounds) <= found


def test_types_are_vllm_s(families):
    types = {family.name: family.type for family in families}
    assert {types[f"vllm:{name}"] for name in HISTOGRAMS} == {"histogram"}
    for name in ("num_requests_running", "kv_cache_usage_perc", "cache_config_info"):
        assert types[f"vllm:{name}"] == "gauge"
    for name in ("prompt_tokens", "request_success", "num_preemptions"):
        assert types[f"vllm:{name}"] == "counter"
    assert types["http_requests"] == "counter"


def test_prompt_tokens_are_told_by_where_they_came_from(samples):
    value = {
        (sample.name, sample.labels.get("source")): sample.value
        for sample in samples
        if sample.name.startswith("vllm:")
    }
    total = value["vllm:prompt_tokens_total", None]
    cached = value["vllm:prompt_tokens_cached_total", None]
    assert 0 < cached < total
    by_source = "vllm:prompt_tokens_by_source_total"
    assert (
        value[by_source, "local_cache_hit"] == cached == value["vllm:prefix_cache_hits_total", None]
    )
    assert value[by_source, "local_compute"] == total - cached
    assert value["vllm:request_prefill_kv_computed_tokens_sum", None] == total - cached
    assert value["vllm:prompt_tokens_cached_by_source_total", "device"] == cached


def test_what_requests_ask_for_is_told_by_prompt_or_by_completion(samples):
    value = {sample.name: sample.value for sample in samples if "le" not in sample.labels}
    for name, total, count in (("n", 1 + 3, 2), ("max_tokens", 4 * 8, 4)):
        assert value[f"vllm:request_params_{name}_sum"] == total
        assert value[f"vllm:request_params_{name}_count"] == count


def test_http_requests_are_counted_by_route_and_what_is_not_a_route_as_one(samples):
    counts = {
        tuple(sample.labels[label] for label in ("handler", "method", "status")): sample.value
        for sample in samples
        if sample.name == "http_requests_total"
    }
    assert counts == {
        ("/v1/completions", "POST", "2xx"): 2,
        ("/v1/completions", "POST", "4xx"): 1,
        ("none", "GET", "4xx"): 1,
        ("/v1/models", "other", "4xx"): 1,
    }
