"""What all benchmarks make of their measurements, under the names of ``vllm bench``."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minimal_vllm_lab.stats.latency import distribution
from minimal_vllm_lab.stats.slo import Slo

LATENCY_PERCENTILES = (10, 25, 50, 75, 90, 99)
"""What ``bench latency`` tells."""

Fields = dict[str, Any]
"""Part of a result, as it is written to JSON."""


@dataclass(slots=True)
class Outcome:
    """What became of one request. Times are in seconds, ``start_time`` by ``perf_counter``."""

    prompt_len: int
    """Tokens: as many as were sent, or as the server counts them, once it has said so."""
    start_time: float
    ttft: float = 0.0
    """From the start to the first token."""
    itl: list[float] = field(default_factory=list)
    """From one token to the next; tokens that arrive together have 0 between them."""
    latency: float = 0.0
    """From the start to the last token."""
    output_tokens: int = 0
    generated_text: str = ""
    error: str = ""
    """Why it failed; empty: it did not."""

    def note_token(self, now: float) -> None:
        """A token, or several in one event, arrived."""
        elapsed = now - self.start_time
        if self.latency:
            self.itl.append(elapsed - self.latency)
        else:
            self.ttft = elapsed
        self.latency = elapsed

    @property
    def tpot(self) -> float | None:
        """Mean time per token after the first; None: there was only one."""
        if self.output_tokens < 2:
            return None
        return (self.latency - self.ttft) / (self.output_tokens - 1)


def measured(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Metric -> its values, in seconds; of requests that did not fail."""
    completed = [each for each in outcomes if not each.error]
    return {
        "ttft": [each.ttft for each in completed],
        "tpot": [each.tpot for each in completed if each.tpot is not None],
        "itl": [gap for each in completed for gap in each.itl],
        "e2el": [each.latency for each in completed],
    }


def count_good(outcomes: Sequence[Outcome], slo: Slo) -> int:
    """How many requests met the objective: no failed one, and as to TPOT, any with one token."""
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
    """The result of one run against a server.

    Args:
        outcomes: of all requests.
        duration: seconds from the first request to the last token.
        slo: which requests count as good; None: no goodput is told.
        metrics: names of those whose distribution is told.
        percentiles: between 0 and 100.
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
    """What ``--save-detailed`` adds: a list for each field, with an entry for each request."""
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
    """Events of the best second, counted from the first request's start."""
    begun = min((each.start_time for each in completed), default=0.0)
    seconds: Counter[int] = Counter()
    for each in completed:
        arrivals = each.start_time - begun + each.ttft + np.cumsum([0.0, *each.itl])
        seconds.update(arrivals.astype(int).tolist())
    return max(seconds.values(), default=0)


def _most_at_once(completed: Sequence[Outcome]) -> int:
    """Requests at the busiest time; one that ends when another starts is not beside it."""
    changes = [(each.start_time, 1) for each in completed]
    changes += [(each.start_time + each.latency, -1) for each in completed]
    running = np.cumsum([change for _, change in sorted(changes)])
    return int(running.max(initial=0))


def throughput_result(num_requests: int, num_tokens: int, elapsed: float) -> Fields:
    """The result of ``bench throughput``; tokens are those of prompts and outputs."""
    return {
        "elapsed_time": elapsed,
        "num_requests": num_requests,
        "total_num_tokens": num_tokens,
        "requests_per_second": num_requests / elapsed,
        "tokens_per_second": num_tokens / elapsed,
    }


def latency_result(latencies: Sequence[float]) -> Fields:
    """The result of ``bench latency``, in seconds."""
    values = np.percentile(latencies, LATENCY_PERCENTILES)
    return {
        "avg_latency": float(np.mean(latencies)),
        "std_latency": float(np.std(latencies)),
        "latencies": list(latencies),
        "percentiles": {
            str(each): float(value) for each, value in zip(LATENCY_PERCENTILES, values, strict=True)
        },
    }
