"""Prometheus metrics of an engine with vLLM's names, so that vLLM's dashboards work."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.build import BuiltEngine
from minimal_vllm.engine.scheduler_interface import SchedulerInterface
from minimal_vllm.engine.sizing import count_fitting_tokens
from minimal_vllm.step.request import FinishReason
from minimal_vllm.trace.step_record import StepRecord

# fmt: off
SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 0.75,
    1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0,
)
"""Bounds of buckets. They include all objectives that vLLM's dashboards offer."""
# fmt: on
TOKENS = tuple(float(2**power) for power in range(18))
PREEMPTIONS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)

SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
SLEEP_STATES = {"awake": 1, "weights_offloaded": 0, "discard_all": 0}


@dataclass(slots=True)
class Timeline:
    """Times of one request, in seconds of ``time.monotonic()``."""

    num_prompt_tokens: int
    arrival: float
    num_cached_tokens: int = 0
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    num_output_tokens: int = 0
    num_preemptions: int = 0


def cache_settings(config: EngineConfig, built: BuiltEngine) -> dict[str, object]:
    """Return the settings of a KV cache that ``EngineMetrics.describe_cache`` exports."""
    num_tokens = count_fitting_tokens(built.scheduler_config, built.num_blocks)
    max_model_len = built.scheduler_config.max_model_len
    return {
        "kv_cache_size_tokens": num_tokens,
        "kv_cache_max_concurrency": f"{num_tokens / max_model_len:.2f}",
        "num_gpu_blocks": built.num_blocks,
        "block_size": config.block_size,
        "cache_dtype": str(built.dtype).removeprefix("torch."),
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enable_prefix_caching": config.enable_prefix_caching,
        "prefix_caching_hash_algo": "sha256",
    }


class EngineMetrics:
    """All metrics of an engine.

    The engine's thread writes them, through ``on_step`` as an observer; any thread may read them.
    Each of the n completions of a prompt counts as a request.

    Args:
        model_name: value of the label ``model_name``.

    Attributes:
        registry: the metrics, for Prometheus's client library.
    """

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"model_name": model_name, "engine": "0"}
        self._timelines: dict[str, Timeline] = {}
        self._seen_queries = self._seen_hits = 0
        self._make_gauges()
        self._make_counters()
        self._make_histograms()

    # ---- construction ---------------------------------------------------------------------------

    def _make_gauges(self) -> None:
        self._running = self._gauge("num_requests_running", "Number of running requests.")
        self._waiting = self._gauge("num_requests_waiting", "Number of waiting requests.")
        reasons = self._gauge(
            "num_requests_waiting_by_reason", "Number of waiting requests by reason.", "reason"
        )
        self._waiting_for_capacity = reasons.labels(**self._labels, reason="capacity")
        # Deferred by other constraints, which this engine doesn't have.
        reasons.labels(**self._labels, reason="deferred").set(0)
        self._kv_usage = self._gauge(
            "kv_cache_usage_perc", "Share of KV blocks that running requests hold, from 0 to 1."
        )
        sleep = self._gauge(
            "engine_sleep_state", "1 for the current state; the engine never sleeps.", "sleep_state"
        )
        for state, value in SLEEP_STATES.items():
            sleep.labels(**self._labels, sleep_state=state).set(value)

    def _make_counters(self) -> None:
        self._queries = self._counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self._preemptions = self._counter("num_preemptions", "Preemptions.")
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens processed.")
        self._cached_tokens = self._counter(
            "prompt_tokens_cached", "Prompt tokens found in the prefix cache, and not computed."
        )
        by_source = self._counter(
            "prompt_tokens_by_source", "Prompt tokens by their source.", "source"
        )
        self._computed, self._cache_hits, _ = (
            by_source.labels(**self._labels, source=source) for source in SOURCES
        )
        tiers = self._counter(
            "prompt_tokens_cached_by_source",
            "Cached prompt tokens by the tier of the cache.",
            "source",
        )
        self._cached_on_device = tiers.labels(**self._labels, source="device")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self._ended = self._counter(
            "request_success", "Requests that ended, by reason.", "finished_reason"
        )
        for reason in FinishReason:
            self._ended.labels(**self._labels, finished_reason=reason.value)
        self._drafts = self._counter(
            "spec_decode_num_drafts", "Guesses in a row, each counted once."
        )
        self._guesses = self._counter("spec_decode_num_draft_tokens", "Tokens that were guessed.")
        self._accepted = self._counter(
            "spec_decode_num_accepted_tokens", "Guessed tokens that were right."
        )
        self._accepted_per_position = self._counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Guessed tokens that were right, by their position among the guesses, from 0.",
            "position",
        )

    def _make_histograms(self) -> None:
        self._step_tokens = self._tokens(
            "iteration_tokens_total", "Prompt tokens computed and tokens generated in a step."
        )
        self._prompt_lengths = self._tokens("request_prompt_tokens", "Prompt tokens of a request.")
        self._prefill_lengths = self._tokens(
            "request_prefill_kv_computed_tokens", "Prompt tokens of a request that were not cached."
        )
        self._output_lengths = [
            self._tokens("request_generation_tokens", "Tokens generated for a request."),
            self._tokens(
                "request_max_num_generation_tokens",
                "Tokens generated for a request, for older dashboards.",
            ),
        ]
        self._asked_choices = self._histogram(
            "request_params_n", "The parameter n, once for each prompt.", CHOICES
        )
        self._asked_tokens = self._tokens(
            "request_params_max_tokens", "The parameter max_tokens of a request, if it has one."
        )
        self._preemptions_of_request = self._histogram(
            "request_num_preemptions", "Preemptions of a request.", PREEMPTIONS
        )
        self._first_token = self._seconds("time_to_first_token", "From arrival to first token.")
        self._between_tokens = self._seconds("inter_token_latency", "Between two tokens.")
        self._per_token = self._seconds(
            "request_time_per_output_token", "Mean time between two tokens of a request."
        )
        self._end_to_end = self._seconds("e2e_request_latency", "From arrival to end.")
        self._queue = self._seconds("request_queue_time", "From arrival to first admission.")
        self._prefill = self._seconds("request_prefill_time", "From admission to first token.")
        self._decode = self._seconds("request_decode_time", "From first token to last.")
        self._inference = self._seconds("request_inference_time", "From admission to last token.")

    def _gauge(self, name: str, doc: str, *labels: str) -> Gauge:
        gauge = Gauge(f"vllm:{name}", doc, [*self._labels, *labels], registry=self.registry)
        return gauge if labels else gauge.labels(**self._labels)

    def _counter(self, name: str, doc: str, *labels: str) -> Counter:
        counter = Counter(f"vllm:{name}", doc, [*self._labels, *labels], registry=self.registry)
        return counter if labels else counter.labels(**self._labels)

    def _tokens(self, name: str, doc: str) -> Histogram:
        return self._histogram(name, doc, TOKENS)

    def _seconds(self, name: str, doc: str) -> Histogram:
        return self._histogram(f"{name}_seconds", doc, SECONDS)

    def _histogram(self, name: str, doc: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}", doc, [*self._labels], registry=self.registry, buckets=buckets
        )
        return histogram.labels(**self._labels)

    # ---- updates --------------------------------------------------------------------------------

    def describe_cache(self, settings: Mapping[str, object]) -> None:
        """Export the settings of the KV cache as labels."""
        labels = {"engine": self._labels["engine"], **settings}
        info = Gauge(
            "vllm:cache_config_info",
            "The KV cache's settings, in the labels.",
            list(labels),
            registry=self.registry,
        )
        info.labels(**labels).set(1)

    def watch(self, scheduler: SchedulerInterface, num_waiting: Callable[[], int]) -> None:
        """Let the gauges show the state of this scheduler, also between two steps."""

        def kv_usage() -> float:
            return 1 - scheduler.pool.num_free / scheduler.pool.num_blocks

        self._running.set_function(lambda: len(scheduler.running))
        self._waiting.set_function(num_waiting)
        self._waiting_for_capacity.set_function(num_waiting)
        self._kv_usage.set_function(kv_usage)

    def arrived(
        self,
        request_id: str,
        num_prompt_tokens: int,
        max_tokens: int | None = None,
        num_choices: int = 1,
    ) -> None:
        """Note that a request was passed to the engine.

        Args:
            request_id: id of the request.
            num_prompt_tokens: length of its prompt.
            max_tokens: its parameter ``max_tokens``.
            num_choices: number of completions of the prompt, if this is the first; else 0.
        """
        self._timelines[request_id] = Timeline(num_prompt_tokens, time.monotonic())
        if max_tokens is not None:
            self._asked_tokens.observe(max_tokens)
        if num_choices:
            self._asked_choices.observe(num_choices)

    def on_step(self, record: StepRecord) -> None:
        """Take in the record of a step."""
        now = time.monotonic()
        self._preemptions.inc(len(record.preempted))
        for request_id in record.preempted:
            self._timelines[request_id].num_preemptions += 1
        self._queries.inc(record.prefix_queries - self._seen_queries)
        self._hits.inc(record.prefix_hits - self._seen_hits)
        self._seen_queries, self._seen_hits = record.prefix_queries, record.prefix_hits
        num_prompt = num_sampled = 0
        for entry in record.scheduled:
            timeline = self._timelines[entry.request_id]
            if timeline.admitted is None:  # the first admission, not one after a preemption
                timeline.admitted = record.started
                timeline.num_cached_tokens = entry.start
                self._queue.observe(record.started - timeline.arrival)
            prompt_end = min(entry.start + entry.num_tokens, timeline.num_prompt_tokens)
            num_prompt += max(prompt_end - entry.start, 0)
            if entry.num_guesses:
                self._on_guesses(entry.num_guesses, len(entry.sampled_tokens) - 1)
            if entry.sampled_tokens:
                num_sampled += len(entry.sampled_tokens)
                self._on_tokens(timeline, len(entry.sampled_tokens), now)
        self._generation_tokens.inc(num_sampled)
        self._step_tokens.observe(num_prompt + num_sampled)

    def _on_tokens(self, timeline: Timeline, count: int, now: float) -> None:
        """Count the tokens of one step. They come at once, so one latency is observed for all."""
        timeline.num_output_tokens += count
        if timeline.last_token is None:
            timeline.first_token = now
            self._on_prompt(timeline.num_prompt_tokens, timeline.num_cached_tokens)
            self._first_token.observe(now - timeline.arrival)
        else:
            self._between_tokens.observe(now - timeline.last_token)
        timeline.last_token = now

    def _on_guesses(self, num_guesses: int, num_accepted: int) -> None:
        """Count a request's guesses in a step; -1 accepted: it ended, and took no token."""
        self._drafts.inc()
        self._guesses.inc(num_guesses)
        self._accepted.inc(max(num_accepted, 0))
        for position in range(num_accepted):
            self._accepted_per_position.labels(**self._labels, position=position).inc()

    def _on_prompt(self, num_tokens: int, num_cached: int) -> None:
        self._prompt_tokens.inc(num_tokens)
        self._computed.inc(num_tokens - num_cached)
        for counter in (self._cached_tokens, self._cache_hits, self._cached_on_device):
            counter.inc(num_cached)

    def ended(self, request_id: str, reason: str) -> None:
        """Note that a request has ended, for whatever reason."""
        timeline = self._timelines.pop(request_id)
        self._ended.labels(**self._labels, finished_reason=reason).inc()
        self._prompt_lengths.observe(timeline.num_prompt_tokens)
        self._prefill_lengths.observe(timeline.num_prompt_tokens - timeline.num_cached_tokens)
        for histogram in self._output_lengths:
            histogram.observe(timeline.num_output_tokens)
        self._preemptions_of_request.observe(timeline.num_preemptions)
        self._end_to_end.observe(time.monotonic() - timeline.arrival)
        if timeline.admitted and timeline.first_token and timeline.last_token:
            decode = timeline.last_token - timeline.first_token
            self._prefill.observe(timeline.first_token - timeline.admitted)
            self._decode.observe(decode)
            self._inference.observe(timeline.last_token - timeline.admitted)
            if timeline.num_output_tokens > 1:
                self._per_token.observe(decode / (timeline.num_output_tokens - 1))

    def forget_requests(self) -> None:
        """Forget the requests that have not ended."""
        self._timelines.clear()
