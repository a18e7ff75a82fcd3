"""Prometheus metrics under vLLM's names, so that dashboards made for vLLM work."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from minimal_vllm.engine.request import FinishReason
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.outputs import RequestOutput
from minimal_vllm.trace.step_record import StepRecord

SECONDS = tuple(digit * 10.0**power for power in range(-3, 3) for digit in (1, 2.5, 5))
TOKENS = tuple(float(2**power) for power in range(18))


@dataclass(slots=True)
class Timeline:
    """When a request passed which door, in seconds of ``time.monotonic()``."""

    num_prompt_tokens: int
    arrival: float
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    num_output_tokens: int = 0


class Metrics:
    """Written by the engine's thread: pass ``on_step`` as an observer. Read by whoever asks.

    Args:
        model_name: the value of the label ``model_name``, which all metrics have.
    """

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._model_name = model_name
        self._timelines: dict[str, Timeline] = {}

        self._running = self._gauge("num_requests_running", "Requests that run.")
        self._waiting = self._gauge("num_requests_waiting", "Requests that wait to run.")
        self._kv_usage = self._gauge(
            "kv_cache_usage_perc", "The share of KV blocks that running requests hold; 1 is all."
        )
        self._queries = self._counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens found there.")
        self._preemptions = self._counter("num_preemptions", "Preemptions.")
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens processed.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self._ended = Counter(
            "vllm:request_success",
            "Requests that ended, by reason.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        for reason in FinishReason:
            self._ended.labels(model_name, reason.value)

        self._step_tokens = self._histogram(
            "iteration_tokens_total", "Tokens computed in a step.", TOKENS
        )
        self._prompt_lengths = self._histogram(
            "request_prompt_tokens", "Prompt tokens of a request.", TOKENS
        )
        self._output_lengths = self._histogram(
            "request_generation_tokens", "Tokens generated for a request.", TOKENS
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
        self._seen_queries = self._seen_hits = 0

    # ---- making them ----------------------------------------------------------------------------

    def _gauge(self, name: str, doc: str) -> Gauge:
        gauge = Gauge(f"vllm:{name}", doc, ["model_name"], registry=self._registry)
        return gauge.labels(self._model_name)

    def _counter(self, name: str, doc: str) -> Counter:
        counter = Counter(f"vllm:{name}", doc, ["model_name"], registry=self._registry)
        return counter.labels(self._model_name)

    def _histogram(self, name: str, doc: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}", doc, ["model_name"], registry=self._registry, buckets=buckets
        )
        return histogram.labels(self._model_name)

    def _seconds(self, name: str, doc: str) -> Histogram:
        return self._histogram(f"{name}_seconds", doc, SECONDS)

    # ---- what happens ---------------------------------------------------------------------------

    def watch(self, scheduler: Scheduler, num_waiting: Callable[[], int]) -> None:
        """Let the gauges show this scheduler; they are true between two steps, too."""

        def kv_usage() -> float:
            return 1 - scheduler.pool.num_free / scheduler.pool.num_blocks

        self._running.set_function(lambda: len(scheduler.running))
        self._waiting.set_function(num_waiting)
        self._kv_usage.set_function(kv_usage)

    def arrived(self, request_id: str, num_prompt_tokens: int) -> None:
        """A request was handed to the engine."""
        self._timelines[request_id] = Timeline(num_prompt_tokens, time.monotonic())

    def on_step(self, record: StepRecord) -> None:
        """A step was computed."""
        self._step_tokens.observe(sum(entry.num_tokens for entry in record.scheduled))
        self._preemptions.inc(len(record.preempted))
        self._queries.inc(record.prefix_queries - self._seen_queries)
        self._hits.inc(record.prefix_hits - self._seen_hits)
        self._seen_queries, self._seen_hits = record.prefix_queries, record.prefix_hits
        for request_id in record.admitted:
            self._on_admission(self._timelines[request_id], record.started)
        now = time.monotonic()
        for entry in record.scheduled:
            if entry.sampled_token is not None:
                self._on_token(self._timelines[entry.request_id], now)

    def _on_admission(self, timeline: Timeline, now: float) -> None:
        if timeline.admitted is None:  # else it was preempted, and comes again
            timeline.admitted = now
            self._queue.observe(now - timeline.arrival)

    def _on_token(self, timeline: Timeline, now: float) -> None:
        self._generation_tokens.inc()
        timeline.num_output_tokens += 1
        if timeline.last_token is None:
            timeline.first_token = now
            self._prompt_tokens.inc(timeline.num_prompt_tokens)
            self._first_token.observe(now - timeline.arrival)
        else:
            self._between_tokens.observe(now - timeline.last_token)
        timeline.last_token = now

    def ended(self, output: RequestOutput) -> None:
        """A request has ended, for whatever reason."""
        timeline = self._timelines.pop(output.request_id)
        reason = output.outputs[0].finish_reason
        self._ended.labels(self._model_name, reason).inc()
        self._prompt_lengths.observe(timeline.num_prompt_tokens)
        self._output_lengths.observe(timeline.num_output_tokens)
        self._end_to_end.observe(time.monotonic() - timeline.arrival)
        if timeline.admitted and timeline.first_token and timeline.last_token:
            decode = timeline.last_token - timeline.first_token
            self._prefill.observe(timeline.first_token - timeline.admitted)
            self._decode.observe(decode)
            self._inference.observe(timeline.last_token - timeline.admitted)
            if timeline.num_output_tokens > 1:
                self._per_token.observe(decode / (timeline.num_output_tokens - 1))

    def render(self) -> bytes:
        """All of them, in Prometheus's text format."""
        return generate_latest(self._registry)
