"""Result fields of all benchmarks, under the names of ``vllm bench``."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minimal_vllm_lab.stats.latency import distribution
from minimal_vllm_lab.stats.slo import Slo

LATENCY_PERCENTILES = (10, 25, 50, 75, 90, 99)
"""Percentiles in the result of ``bench latency``."""

Fields = dict[str, Any]
"""Fields of a result, as they are written to JSON."""


@dataclass(slots=True)
class Outcome:
    """Measurements of one request. Times are in seconds, by the clock ``perf_counter``."""

    prompt_len: int
    """Number of prompt tokens: as sent, until the server reports its own count."""
    start_time: float
    """Time at which the request was sent."""
    ttft: float = 0.0
    """Time from the start to the first token."""
    itl: list[float] = field(default_factory=list)
    """Gaps between tokens; 0 between tokens that arrive together."""
    latency: float = 0.0
    """Time from the start to the last token."""
    output_tokens: int = 0
    """Number of output tokens."""
    generated_text: str = ""
    """Text of the output."""
    error: str = ""
    """Reason why the request failed; empty if it did not."""

    def note_token(self, now: float) -> None:
        """Record the arrival of one event with one or more tokens, at the time ``now``."""
        elapsed = now - self.start_time
        if self.latency:
            self.itl.append(elapsed - self.latency)
        else:
            self.ttft = elapsed
        self.latency = elapsed

    @property
    def tpot(self) -> float | None:
        """Mean time per token after the first; None if there was only one token."""
        if self.output_tokens < 2:
            return None
        return (self.latency - self.ttft) / (self.output_tokens - 1)


def measured(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Return each metric's values in seconds, for the requests that did not fail."""
    completed = [each for each in outcomes if not each.error]
    return {
        "ttft": [each.ttft for each in completed],
        "tpot": [each.tpot for each in completed if each.tpot is not None],
        "itl": [gap for each in completed for gap in each.itl],
        "e2el": [each.latency for each in completed],
    }


def count_good(outcomes: Sequence[Outcome], slo: Slo) -> int:
    """Return how many requests met the objective.

    Failed requests did not. A request with one token meets any limit on TPOT.
    """
    return sum(
        not each.error and slo.is_met(each.ttft, each.tpot or 0.0, each.latency)
        for each in outcomes
    )


def serve_result(
    outcomes: Sequence[Outcome],
    duration: float,
    slo: Slo | None,
    metrics: Sequence[str],
    percentiles: Sequence[float],
) -> Fields:
    """Return the result fields of one run against a server.

    Args:
        outcomes: outcomes of all requests.
        duration: time in seconds from the first request to the last token.
        slo: objective that good requests meet. None: goodput is not reported.
        metrics: latencies whose distribution is reported.
        percentiles: percentiles to report, between 0 and 100.
    """
    completed = [each for each in outcomes if not each.error]
    num_input = sum(each.prompt_len for each in completed)
    num_output = sum(each.output_tokens for each in completed)
    values = measured(outcomes)
    result: Fields = {
        "duration": duration,
        "completed": len(completed),
        "failed": len(outcomes) - len(completed),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(completed) / duration,
        "request_goodput": count_good(outcomes, slo) / duration if slo else None,
        "output_throughput": num_output / duration,
        "total_token_throughput": (num_input + num_output) / duration,
        "max_output_tokens_per_s": _most_tokens_in_a_second(completed),
        "max_concurrent_requests": _most_at_once(completed),
    }
    for name in metrics:
        result |= distribution(name, values[name], percentiles)
    return result


def serve_details(outcomes: Sequence[Outcome]) -> Fields:
    """Return the fields that ``--save-detailed`` adds: lists with one entry per request."""
    return {
        "input_lens": [each.prompt_len for each in outcomes],
        "output_lens": [each.output_tokens for each in outcomes],
        "start_times": [each.start_time for each in outcomes],
        "ttfts": [each.ttft for each in outcomes],
        "itls": [each.itl for each in outcomes],
        "latencies": [each.latency for each in outcomes],
        "generated_texts": [each.generated_text for each in outcomes],
        "errors": [each.error for each in outcomes],
    }


def _most_tokens_in_a_second(completed: Sequence[Outcome]) -> int:
    """Return the number of events in the best second, counting seconds from the first request."""
    begun = min((each.start_time for each in completed), default=0.0)
    seconds: Counter[int] = Counter()
    for each in completed:
        arrivals = each.start_time - begun + each.ttft + np.cumsum([0.0, *each.itl])
        seconds.update(arrivals.astype(int).tolist())
    return max(seconds.values(), default=0)


def _most_at_once(completed: Sequence[Outcome]) -> int:
    """Return the maximum number of concurrent requests.

    A request that ends when another starts is not concurrent with it.
    """
    changes = [(each.start_time, 1) for each in completed]
    changes += [(each.start_time + each.latency, -1) for each in completed]
    running = np.cumsum([change for _, change in sorted(changes)])
    return int(running.max(initial=0))


def throughput_result(num_requests: int, num_tokens: int, elapsed: float) -> Fields:
    """Return the result fields of ``bench throughput``.

    Args:
        num_requests: number of requests.
        num_tokens: number of prompt and output tokens.
        elapsed: duration in seconds.
    """
    return {
        "elapsed_time": elapsed,
        "num_requests": num_requests,
        "total_num_tokens": num_tokens,
        "requests_per_second": num_requests / elapsed,
        "tokens_per_second": num_tokens / elapsed,
    }


def latency_result(latencies: Sequence[float]) -> Fields:
    """Return the result fields of ``bench latency``; all times are in seconds."""
    values = np.percentile(latencies, LATENCY_PERCENTILES)
    return {
        "avg_latency": float(np.mean(latencies)),
        "std_latency": float(np.std(latencies)),
        "latencies": list(latencies),
        "percentiles": {
            str(each): float(value) for each, value in zip(LATENCY_PERCENTILES, values, strict=True)
        },
    }
