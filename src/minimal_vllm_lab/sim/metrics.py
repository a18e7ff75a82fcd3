"""Metrics of a simulation, under the names that ``vllm bench serve`` prints.

They are measured at the server, without a network. TTFT is the time to first token. TPOT is the
mean time per output token of a request, after its first. ITL is the inter-token latency: each gap
between two tokens. E2EL is the end-to-end latency.
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, nan
from typing import Any

from minimal_vllm_lab.sim.job import SimulatedRequest
from minimal_vllm_lab.sim.replica import BINS_PER_E, Replica
from minimal_vllm_lab.stats.guesses import GuessCounts
from minimal_vllm_lab.stats.latency import distribution
from minimal_vllm_lab.stats.slo import Slo

PERCENTILES = (99,)
"""Percentiles of each latency in a report."""


@dataclass(frozen=True)
class Report:
    """Results of a simulation."""

    completed: int
    """Number of completed requests."""
    refused: int
    """Number of requests that the engine rejected because they are too long for it."""
    duration: float
    """Time in seconds from the start to the last token."""
    total_input_tokens: int
    """Number of prompt tokens of completed requests."""
    total_output_tokens: int
    """Number of generated tokens."""
    num_good: int | None
    """Number of requests that met the objective; None without an objective."""
    latencies: dict[str, float | None]
    """Statistics in ms by name, such as ``p99_ttft_ms``; None where nothing was measured."""
    prefix_cache_hit_rate: float
    """Fraction of prompt tokens that were found in the prefix cache."""
    num_preemptions: int
    """Number of preemptions of completed requests."""
    num_steps: int
    """Number of steps of all replicas."""
    busy: float
    """Fraction of the time in which a replica computed, averaged over replicas."""
    guesses: GuessCounts
    """Guesses of all replicas, and right ones."""

    @property
    def attainment(self) -> float | None:
        """Fraction of all requests that met the objective; None without one.

        Rejected requests count as not meeting it.
        """
        if self.num_good is None:
            return None
        return self.num_good / max(1, self.completed + self.refused)

    def to_json(self) -> dict[str, Any]:
        """Return a flat dictionary, with vLLM's keys where vLLM has the number.

        Latencies are in milliseconds, durations in seconds, rates per second.
        """
        seconds = self.duration or nan
        return {
            "completed": self.completed,
            "refused": self.refused,
            "duration": self.duration,
            "total_input_tokens": self.total_input_tokens,
            "total_output_tokens": self.total_output_tokens,
            "request_throughput": self.completed / seconds,
            "request_goodput": None if self.num_good is None else self.num_good / seconds,
            "output_throughput": self.total_output_tokens / seconds,
            "total_token_throughput": (self.total_input_tokens + self.total_output_tokens)
            / seconds,
            **self.latencies,
            "slo_attainment": self.attainment,
            "prefix_cache_hit_rate": self.prefix_cache_hit_rate,
            "num_preemptions": self.num_preemptions,
            "num_steps": self.num_steps,
            "busy": self.busy,
            **self.guesses.result(),
        }


class Metrics:
    """Accumulator of the replicas' results.

    Its memory grows by up to 24 bytes per completed request, and by nothing else.

    Args:
        slo: objective that good requests meet; None: good requests are not counted.
    """

    def __init__(self, slo: Slo | None) -> None:
        self._slo = slo
        self._ttft, self._tpot, self._e2el = array("d"), array("d"), array("d")
        self._num_input = self._num_output = self._num_good = 0
        self._num_refused = self._num_preemptions = 0
        self._ended_at = 0.0

    def add_refused(self) -> None:
        """Record a request that the engine rejected because it is too long."""
        self._num_refused += 1

    def add_ended(self, request: SimulatedRequest, now: float) -> None:
        """Record a request that got its last token at the time ``now``, in seconds."""
        assert request.first_token_at is not None  # noqa: S101 - narrows the type
        ttft = request.first_token_at - request.arrived
        e2el = now - request.arrived
        num_later = request.num_output_tokens - 1
        tpot = (e2el - ttft) / num_later if num_later else 0.0
        self._ttft.append(ttft)
        self._e2el.append(e2el)
        if num_later:
            self._tpot.append(tpot)
        if self._slo is not None:
            self._num_good += self._slo.is_met(ttft, tpot, e2el)
        self._num_input += request.num_prompt_tokens
        self._num_output += request.num_output_tokens
        self._num_preemptions += request.num_preemptions
        self._ended_at = now

    def report(self, replicas: Sequence[Replica]) -> Report:
        """Return the report of all recorded requests and of the replicas' steps."""
        caches = [each.scheduler.prefix_cache_stats for each in replicas]
        tallies = [each.tally for each in replicas]
        busy_seconds = sum(each.busy_seconds for each in tallies)
        gaps = sum((each.gaps for each in tallies), Counter[int]())
        bins = [exp((each + 0.5) / BINS_PER_E) for each in gaps]
        return Report(
            completed=len(self._ttft),
            refused=self._num_refused,
            duration=self._ended_at,
            total_input_tokens=self._num_input,
            total_output_tokens=self._num_output,
            num_good=None if self._slo is None else self._num_good,
            latencies={
                **distribution("ttft", self._ttft, PERCENTILES),
                **distribution("tpot", self._tpot, PERCENTILES),
                **distribution("itl", bins, PERCENTILES, list(gaps.values())),
                **distribution("e2el", self._e2el, PERCENTILES),
            },
            prefix_cache_hit_rate=sum(cache.hits for cache in caches)
            / max(1, sum(cache.queries for cache in caches)),
            num_preemptions=self._num_preemptions,
            num_steps=sum(each.num_steps for each in tallies),
            busy=busy_seconds / max(len(replicas) * self._ended_at, 1e-9),
            guesses=sum((each.guesses for each in tallies), GuessCounts()),
        )
