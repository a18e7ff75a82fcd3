"""Prometheus metrics of a server: the engine's, the process's and those of HTTP requests."""

from http import HTTPStatus

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from minimal_vllm.metrics.engine_metrics import SECONDS, EngineMetrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})


class HttpMetrics:
    """Metrics of a process that speaks HTTP.

    Args:
        model_name: value of the label ``model_name``.
        registry: where the metrics are kept. Default: a new one.
    """

    def __init__(self, model_name: str, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._http_requests = Counter(
            "http_requests",
            "HTTP requests by class of status, except those of monitoring.",
            ["handler", "method", "status"],
            registry=self.registry,
        )
        self._http_seconds = Histogram(
            "http_request_duration_seconds",
            "From an HTTP request's head to the end of its answer.",
            ["handler", "method"],
            registry=self.registry,
            buckets=SECONDS,
        )
        rejections = Counter(
            "vllm:admission_rejections",
            "Requests refused because too many wait, by the limit that they met.",
            ["model_name", "reason"],
            registry=self.registry,
        )
        self._rejections = rejections.labels(model_name, "max_num_queued_reqs")

    def answered(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Note that an HTTP request was answered by the route ``handler``, or ``none``."""
        if method not in METHODS:  # clients could make up any number of names
            method = "other"
        self._http_requests.labels(handler, method, f"{status // 100}xx").inc()
        self._http_seconds.labels(handler, method).observe(seconds)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self._rejections.inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)


class Metrics(EngineMetrics):
    """All metrics of a server.

    Args:
        model_name: value of the label ``model_name`` of all the engine's metrics.
    """

    def __init__(self, model_name: str) -> None:
        super().__init__(model_name)
        self._http = HttpMetrics(model_name, self.registry)

    def answered(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Note that an HTTP request was answered by the route ``handler``, or ``none``."""
        self._http.answered(handler, method, status, seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return self._http.text()

    async def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return self.text()
