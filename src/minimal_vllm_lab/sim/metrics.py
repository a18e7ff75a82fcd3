"""What a simulation is measured by: the numbers that ``vllm bench serve`` prints, by its names.

They are the server's own, without a network: TTFT (time to first token), TPOT (time per output
token after the first, of a request), ITL (inter-token latency: each gap between two tokens) and
E2EL (end-to-end latency).
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, nan
from typing import Any

from minimal_vllm_lab.sim.job import SimulatedRequest
from minimal_vllm_lab.sim.replica import BINS_PER_E, Replica
from minimal_vllm_lab.stats.latency import distribution
from minimal_vllm_lab.stats.slo import Slo

PERCENTILES = (99,)


@dataclass(frozen=True)
class Report:
    """What came of a simulation."""

    completed: int
    refused: int
    """Requests too long for the engine, which it refuses."""
    duration: float
    """Seconds from the start to the last token."""
    total_input_tokens: int
    total_output_tokens: int
    num_good: int | None
    """Requests that met the objective; None: there was none."""
    latencies: dict[str, float | None]
    """Such as ``p99_ttft_ms``; None: nothing was measured."""
    prefix_cache_hit_rate: float
    num_preemptions: int
    num_steps: int
    busy: float
    """The share of the time in which a replica computed, on average."""

    @property
    def attainment(self) -> float | None:
        """The share of the requests that met the objective; the refused ones did not."""
        if self.num_good is None:
            return None
        return self.num_good / max(1, self.completed + self.refused)

    def to_json(self) -> dict[str, Any]:
        """Flat, with vLLM's keys where it has one; latencies in milliseconds, rates per second."""
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
        }


class Metrics:
    """Adds up what the replicas tell.

    Memory grows by up to 24 bytes for each request that has ended, and by nothing else.
    """

    def __init__(self, slo: Slo | None) -> None:
        self._slo = slo
        self._ttft, self._tpot, self._e2el = array("d"), array("d"), array("d")
        self._num_input = self._num_output = self._num_good = 0
        self._num_refused = self._num_preemptions = 0
        self._ended_at = 0.0

    def add_refused(self) -> None:
        """A request was too long for the engine."""
        self._num_refused += 1

    def add_ended(self, request: SimulatedRequest, now: float) -> None:
        """A request got its last token."""
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
        """All of it, with what the replicas add up to."""
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
        )
