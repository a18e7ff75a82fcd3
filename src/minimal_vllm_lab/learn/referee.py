"""Referee of the exercise beat-fcfs: follows the steps of a simulated scheduler, and times them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from minimal_vllm.config import SchedulerConfig
from minimal_vllm.trace.step_record import StepRecord
from minimal_vllm_lab.check.lesson import Broken, Rule
from minimal_vllm_lab.check.scheduler_rules import BUDGET, MAX_SEQS, NO_SWAP, PROGRESS
from minimal_vllm_lab.sim.job import Job

CHAPTER = "14-capacity"
ALL_FINISH = Rule(
    "All requests finish.",
    "A request that is served last must still be served at some point.",
    CHAPTER,
)
WHOLE = Rule(
    "Each request computes its whole prompt, and gets its whole answer.",
    "Less work is faster, but it is not what was asked for. An order decides when a request is "
    "computed, not how much of it.",
    CHAPTER,
)


class Stopped(BaseException):
    """Raised in an observer to stop the simulation: an ``Exception`` would only be logged.

    Args:
        broken: the rule that was broken.
    """

    def __init__(self, broken: Broken) -> None:
        super().__init__()
        self.broken = broken


@dataclass
class Referee:
    """Observer of a simulated engine.

    It knows the requests from the traffic, and their tokens from the records of the steps, so
    whatever a scheduler does to a request does not change what is measured.
    """

    jobs: Sequence[Job]
    """All requests; the id of one is its index."""
    limits: SchedulerConfig
    """Limits of the engine, whatever the scheduler makes of them."""
    max_steps: int
    """Number of steps after which the simulation is stopped."""
    first_token_at: dict[int, float] = field(default_factory=dict)
    """Time of a request's first token in seconds, by its index."""
    num_steps: int = 0
    _num_computed: Counter[int] = field(default_factory=Counter)
    _num_sampled: Counter[int] = field(default_factory=Counter)

    def __call__(self, record: StepRecord) -> None:
        """Follow a step.

        Raises:
            Stopped: the step breaks a rule.
        """
        self.num_steps += 1
        try:
            self._check_limits(record)
        except Broken as broken:
            raise Stopped(broken) from None
        ended = record.started + record.schedule_seconds + record.run_seconds
        for entry in record.scheduled:
            index = int(entry.request_id)
            self._num_computed[index] += entry.num_tokens
            self._num_sampled[index] += len(entry.sampled_tokens)
            if entry.sampled_tokens:
                self.first_token_at.setdefault(index, ended)

    def _check_limits(self, record: StepRecord) -> None:
        num_tokens = sum(entry.num_tokens for entry in record.scheduled)
        if num_tokens > self.limits.max_num_batched_tokens:
            most = f"at most {self.limits.max_num_batched_tokens}"
            raise Broken(BUDGET, f"{num_tokens} tokens", most)
        num_requests = len(record.scheduled)
        if num_requests > self.limits.max_num_seqs:
            most = f"at most {self.limits.max_num_seqs}"
            raise Broken(MAX_SEQS, f"{num_requests} requests in a step", most)
        if not (record.scheduled or record.preempted):
            found = f"an empty step: {record.num_running} requests run, {record.num_waiting} wait"
            raise Broken(PROGRESS, found)
        if record.preempted and record.admitted:
            names = (
                f"{', '.join(record.admitted)} admitted, {', '.join(record.preempted)} preempted"
            )
            raise Broken(NO_SWAP, names)
        if self.num_steps > self.max_steps:
            raise Broken(
                ALL_FINISH,
                f"{len(self.first_token_at)} of {len(self.jobs)} requests have their first token "
                f"after {self.max_steps:,} steps, many times as many as first come, first served "
                f"takes",
            )

    def check_end(self) -> None:
        """Check that all requests were served.

        Raises:
            Broken: a request was not, or not in full.
        """
        missing = [index for index in self.fitting if index not in self.first_token_at]
        if missing:
            shown = f"{len(missing)} requests got no token, such as {self._name(missing[0])}"
            raise Broken(ALL_FINISH, shown)
        for index, job in self.fitting.items():
            num_sampled, num_computed = self._num_sampled[index], self._num_computed[index]
            most = min(job.num_output_tokens, self.limits.max_model_len - len(job.prompt))
            if num_sampled != most:
                raise Broken(WHOLE, f"{self._name(index)} gets {num_sampled} tokens", f"{most}")
            # Prompts have no common prefix, and the last token of an answer is not computed.
            least = len(job.prompt) + num_sampled - 1
            if num_computed < least:
                found = f"{self._name(index)} computes {num_computed:,} tokens"
                raise Broken(WHOLE, found, f"{least:,}")

    def _name(self, index: int) -> str:
        return f"request {index}, with {len(self.jobs[index].prompt):,} prompt tokens,"

    @property
    def fitting(self) -> dict[int, Job]:
        """The requests whose prompts the engine accepts, by index."""
        most = self.limits.max_model_len
        return {index: job for index, job in enumerate(self.jobs) if len(job.prompt) < most}

    @property
    def waits(self) -> dict[int, float]:
        """Seconds from the arrival of each request to its first token, by index."""
        return {
            index: self.first_token_at[index] - job.arrival for index, job in self.fitting.items()
        }
