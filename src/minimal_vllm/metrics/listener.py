"""Metrics of an engine that no server drives: everything is learned from its records."""

from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.build import BuiltEngine
from minimal_vllm.metrics.engine_metrics import EngineMetrics, cache_settings
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.request import FinishReason
from minimal_vllm.trace.step_record import (
    AbortRecord,
    Listener,
    Record,
    RequestRecord,
    ResetRecord,
    StepRecord,
)


class MetricsListener(Listener):
    """Updates an engine's metrics from its records.

    Args:
        metrics: the metrics to update.
    """

    def __init__(self, metrics: EngineMetrics) -> None:
        self.metrics = metrics

    def attach(self, config: EngineConfig, built: BuiltEngine) -> None:
        """Let the metrics show the state and the settings of this engine."""
        scheduler = built.engine.scheduler
        self.metrics.describe_cache(cache_settings(config, built))
        self.metrics.watch(scheduler, lambda: len(scheduler.waiting))

    def __call__(self, record: Record) -> None:
        """Update the metrics by what has just happened."""
        match record:
            case RequestRecord():
                self._on_request(record)
            case AbortRecord():
                self.metrics.ended(record.request_id, FinishReason.ABORT.value)
            case ResetRecord():
                self.metrics.forget_requests()
            case StepRecord():
                self.metrics.on_step(record)
                for request_id, reason in record.finished[record.num_aborted :]:
                    self.metrics.ended(request_id, reason)

    def _on_request(self, record: RequestRecord) -> None:
        n = record.params.get("n", SamplingParams.n)
        is_first = n == 1 or record.request_id.endswith("#0")  # the engine numbers completions
        self.metrics.arrived(
            record.request_id,
            len(record.prompt_token_ids),
            record.params.get("max_tokens", SamplingParams.max_tokens),
            n if is_first else 0,
        )
