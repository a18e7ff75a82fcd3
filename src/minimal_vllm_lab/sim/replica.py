"""Replica: one engine on a simulated clock."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import floor, log
from operator import attrgetter
from typing import TYPE_CHECKING

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.reporter import Reporter, Timing
from minimal_vllm.step.request import Status
from minimal_vllm.trace.step_record import Observer
from minimal_vllm_lab.sim.cost_model import CostModel
from minimal_vllm_lab.sim.guesses import NoGuesses
from minimal_vllm_lab.sim.job import SimulatedRequest, simulated
from minimal_vllm_lab.sim.lazy_scheduler import LazyScheduler
from minimal_vllm_lab.sim.load import count_shared, load_of_decodes, load_of_plan
from minimal_vllm_lab.stats.guesses import GuessCounts

if TYPE_CHECKING:
    from minimal_vllm.engine.scheduler_interface import SchedulerInterface
    from minimal_vllm.step.plan import Plan

    SchedulerMaker = Callable[[SchedulerConfig, BlockPool, Callable[[], float]], SchedulerInterface]

BINS_PER_E = 500
"""Number of bins per factor e of inter-token latency, so that a bin is 0.2 % wide.

Latencies are counted in bins because there can be billions of them.
"""


@dataclass(slots=True)
class Tally:
    """Totals over a replica's steps."""

    num_steps: int = 0
    """Number of steps."""
    busy_seconds: float = 0.0
    """Total duration of the steps."""
    gaps: Counter[int] = field(default_factory=Counter)
    """Inter-token latencies: bin ``b`` -> number of gaps from ``e ** (b / BINS_PER_E)`` seconds to
    the next bin."""
    guesses: GuessCounts = field(default_factory=GuessCounts)
    """Guesses, and right ones."""

    def add_step(self, seconds: float, num_gaps: int) -> None:
        """Add a step, and one gap of its duration for each of ``num_gaps`` requests.

        Those requests got a token when the step began and the next one when it ended. Of several
        tokens in one step, only the first counts, as in ``vllm bench``.
        """
        self.num_steps += 1
        self.busy_seconds += seconds
        if num_gaps:
            self.add_gaps(seconds, num_gaps)

    def add_gaps(self, seconds: float, count: int) -> None:
        """Add ``count`` gaps of the same duration between two tokens."""
        self.gaps[floor(BINS_PER_E * log(max(seconds, 1e-9)))] += count


class Replica:
    """Engine with its real scheduler and block pool, and a cost model in place of the model.

    The cluster owns the clock. It calls ``begin``, which returns a time, lets the clock advance to
    that time, and calls ``end``. In between lies one step, or several steady steps (see
    ``LazyScheduler``).

    Args:
        config: configuration of the scheduler.
        pool: empty block pool.
        cost_model: predicts the duration of steps.
        observers: called with the engine's own records, in simulated seconds. Observers see
            every step in full, so with observers no request sleeps.
        make_scheduler: makes a scheduler that plans every step in full, such as the user's own,
            from its configuration, the pool and the simulated clock. Default: the lazy scheduler.
        cascade: whether steps that only decode read a shared prefix once for all requests.
        answer: returns the next token of a request. Default: its ``output_token``, always.
        guesses: says how many guesses are right, and how long guessing takes. Default: there are
            none, and a step yields one token for each request that samples.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        cost_model: CostModel,
        observers: Sequence[Observer] = (),
        make_scheduler: "SchedulerMaker | None" = None,
        *,
        cascade: bool = False,
        answer: Callable[[SimulatedRequest], int] = attrgetter("output_token"),
        guesses: NoGuesses | None = None,
    ) -> None:
        self.scheduler: SchedulerInterface
        self._lazy: LazyScheduler | None = None
        if make_scheduler:
            self.scheduler = make_scheduler(config, pool, lambda: self._now)
        else:
            self.scheduler = self._lazy = LazyScheduler(config, pool, may_sleep=not observers)
        self.tally = Tally()
        self._cost_model = cost_model
        self._cascade = cascade
        self._guesses = guesses or NoGuesses(answer)
        self._reporter = Reporter(self.scheduler, observers, clock=lambda: self._now)
        self._now = 0.0
        self._timing = Timing()
        self._plan: Plan | None = None
        self._num_asleep = 0
        self._seconds: list[float] = []
        """Durations of the steps in progress."""
        self._ends: list[float] = []
        """End times of the steps in progress."""
        self._was_idle = True
        """True if the replica was idle just before the step in progress."""

    def add(self, request: SimulatedRequest) -> None:
        """Add a request that arrives now to the waiting requests, also during a step.

        Raises:
            ValueError: the engine rejects the request.
        """
        self.scheduler.add(request)
        self._now = request.arrived
        self._reporter.note_arrived([request])

    def begin(self, now: float) -> float:
        """Continue at the time ``now``; return the time at which the next decision is due."""
        self._now = now
        num_steady_steps = self._lazy.count_steady_steps() if self._lazy else 0
        if num_steady_steps:
            self._begin_steady_steps(num_steady_steps)
        else:
            self._begin_step()
        return self._ends[-1]

    def cut_short(self, now: float) -> float:
        """Cut steady steps short because a request arrived; return the end of the step in progress.

        If no step is in progress, ``now`` is returned.
        """
        del self._ends[bisect_left(self._ends, now) + 1 :]
        return self._ends[-1] if self._ends else now

    def end(self) -> list[SimulatedRequest]:
        """End the steps in progress, if any; return the requests that got their last token."""
        ended = []
        if self._plan:
            ended = self._end_step(self._plan)
        else:
            self._end_steady_steps()
        self._was_idle = not self._ends
        self._seconds, self._ends, self._plan = [], [], None
        return ended

    def _begin_step(self) -> None:
        self._timing = self._reporter.begin()
        self._plan = plan = self.scheduler.schedule()
        self._reporter.planned(plan, self._timing)
        for request in map(simulated, plan.preempted):
            if request.first_token_at is not None and request.stalled_since is None:
                # Its last token came when the previous step ended, which is now.
                request.stalled_since = self._now
        self._num_asleep, context = self._asleep()
        load = load_of_plan(plan, self._num_asleep, context)
        if load.num_tokens == load.num_requests == load.num_samples:
            load = load.with_shared(self._count_shared())
        if self._was_idle:  # otherwise the CPU processes prompts while the previous step runs
            load = load._replace(admitted=sum(each.num_prompt_tokens for each in plan.admitted))
        self._seconds = [self._guesses.seconds(plan) + self._cost_model.seconds(load)]
        self._ends = [self._now + self._seconds[0]]

    def _end_step(self, plan: "Plan") -> list[SimulatedRequest]:
        self._now = now = self._ends[0]
        self._reporter.mark(self._timing)
        entries = [entry for entry in plan.scheduled if entry.num_logits]
        sampled = [self._guesses.sample(entry) for entry in entries]
        for entry, tokens in zip(entries, sampled, strict=True):
            self.tally.guesses.note(len(entry.guesses), len(tokens) - 1)
        self.scheduler.update(plan, sampled)
        sampling = [simulated(entry.request) for entry in entries]
        self._reporter.end(plan, sampling, self._timing)
        num_undisturbed = self._num_asleep + len(sampling)
        ended = []
        for request in sampling:
            if request.first_token_at is None:
                request.first_token_at = now
                num_undisturbed -= 1
            elif request.stalled_since is not None:
                self.tally.add_gaps(now - request.stalled_since, 1)
                request.stalled_since = None
                num_undisturbed -= 1
            if request.status is Status.FINISHED:
                ended.append(request)
        self.tally.add_step(self._seconds[0], num_undisturbed)
        return ended

    def _begin_steady_steps(self, count: int) -> None:
        end = self._now
        num_requests, context = self._asleep()
        num_shared = self._count_shared()  # constant until a block is full
        for _ in range(count):
            load = load_of_decodes(num_requests, context).with_shared(num_shared)
            seconds = self._cost_model.seconds(load)
            end += seconds
            context += num_requests
            self._seconds.append(seconds)
            self._ends.append(end)

    def _end_steady_steps(self) -> None:
        if self._lazy is None:  # only a lazy scheduler has steady steps
            return
        # After ``cut_short`` there are fewer ends than durations.
        for seconds, _ in zip(self._seconds, self._ends, strict=False):
            self.tally.add_step(seconds, self._lazy.num_asleep)
        self._lazy.pass_steady_steps(len(self._ends))

    def _count_shared(self) -> int:
        """Count the attended pairs of a pure decode step that need not be read again."""
        if not self._cascade:
            return 0
        config = self.scheduler.config
        return count_shared(self.scheduler.running, config.block_size, config.windows)

    def _asleep(self) -> tuple[int, int]:
        """Return the number of sleepers, and their total context length after the next step."""
        return (self._lazy.num_asleep, self._lazy.asleep_context) if self._lazy else (0, 0)
