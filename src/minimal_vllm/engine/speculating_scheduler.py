"""The scheduler that lets steps compute guesses, behind the tokens that are known."""

import time
from collections.abc import Callable, Sequence

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.speculation.allowance import SHARE, Allowance
from minimal_vllm.speculation.interface import Guesser
from minimal_vllm.speculation.pace import Acceptance, CostMeter, choose_counts
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import Request


class SpeculatingScheduler(Scheduler):
    """Scheduler that adds guesses to its plans, where budget and pool leave room for them.

    A guess is a token behind the list: it is planned as if it were known, and ``update`` moves the
    counter back over those that were wrong. Guesses come last: no request waits, loses blocks or
    gets fewer tokens because of them.

    Args:
        config: limits and policy.
        pool: blocks.
        guesser: proposes the tokens; it must never fail, as ``CheckedGuesser`` never does.
        max_guesses: maximum number of guesses of a request in a step.
        in_passes: whether a draft model guesses, in one pass for each guess.
        may_lose: fraction of all time that guesses may lose; see ``Allowance``.
        clock: returns the time in seconds; by default the thread's CPU time, which other work on
            the machine does not disturb.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        guesser: Guesser,
        max_guesses: int,
        *,
        in_passes: bool = False,
        may_lose: float = SHARE,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        super().__init__(config, pool)
        self.guesser = guesser
        self.max_guesses = max_guesses
        self.in_passes = in_passes
        self.meter = CostMeter()
        self.allowance = Allowance(may_lose)
        self.max_step_tokens = config.max_num_batched_tokens
        self._clock = clock
        self._updated_at: float | None = None
        """Time of the last update; None: nothing has been computed since."""
        self._is_guessing = False
        """Whether the last step had guesses."""
        self._typical = Acceptance()
        self._acceptance: dict[Request, Acceptance] = {}

    def add(self, request: Request) -> None:
        """Add a new request; see ``Scheduler``."""
        if not self.has_work:
            self._updated_at = None  # the time in which there was nothing to do is no step's cost
        super().add(request)

    def schedule(self) -> Plan:
        """Plan the next step, as without guesses, and then add guesses."""
        if self._updated_at is None:
            self._updated_at = self._clock()
        plan = super().schedule()
        entries = [entry for entry in plan.scheduled if entry.num_logits]
        most = self.max_guesses_for(plan, entries)
        if any(most):
            guesses = self.guesser.propose(entries, most)
            counts = self.count_guesses(plan, entries, guesses)
            for entry, tokens, count in zip(entries, guesses, counts, strict=True):
                self.add_guesses(entry, tokens[:count])
            plan.evicted += self.pool.take_evicted()
        return plan

    def update(self, plan: Plan, sampled: Sequence[Sequence[int]]) -> None:
        """Append the sampled tokens, and learn from them how much to guess."""
        self._note_cost(plan, sampled)
        entries = [entry for entry in plan.scheduled if entry.num_logits]
        for entry, tokens in zip(entries, sampled, strict=True):
            acceptance = self._acceptance.get(entry.request)
            if acceptance is not None and entry.num_logits > 1:
                num_accepted = max(len(tokens) - 1, 0)
                acceptance.note(entry.num_logits - 1, num_accepted)
                self._typical.note(entry.num_logits - 1, num_accepted)
        super().update(plan, sampled)

    def release(self, request: Request) -> None:
        """Return the blocks and the row of ``request``, and forget what was learned of it."""
        super().release(request)
        self.guesser.forget(request)
        self._acceptance.pop(request, None)

    def reset(self) -> None:
        """Forget all requests and all cached blocks."""
        for request in self.running:
            self.guesser.forget(request)
        self._acceptance.clear()
        self._updated_at = None
        super().reset()

    def _note_cost(self, plan: Plan, sampled: Sequence[Sequence[int]]) -> None:
        """Learn from the time since the last update what rows and guesses cost.

        Two kinds of steps are not typical: the first of several with guesses, in which a draft
        model catches up, and one that waited for guesses and has none. Nothing is learned from
        them, but the time that they lost counts. A step with guesses that took far too long was
        held up by something else, and is ignored.
        """
        now = self._clock()
        seconds = now - (now if self._updated_at is None else self._updated_at)
        self._updated_at = now
        if not seconds or not plan.scheduled:
            return
        longest = max(len(entry.guesses) for entry in plan.scheduled)
        begins = longest > 0 and not self._is_guessing
        self._is_guessing = longest > 0
        catches_up = begins and self.in_passes
        num_rows = sum(entry.num_new for entry in plan.scheduled)
        num_passes = longest if self.in_passes else min(longest, 1)
        if longest and not catches_up and self.meter.is_far_above(num_rows, num_passes, seconds):
            return
        is_typical = not (catches_up or self.waited(plan))
        if is_typical and all(entry.num_logits for entry in plan.scheduled):
            self.meter.note(num_rows, num_passes, seconds)
        has_lost = longest > 0 or self.waited(plan)
        needed = self._time_without_guesses(plan, sampled) if has_lost else seconds
        self.allowance.note(seconds, seconds if needed is None else needed)

    def _time_without_guesses(self, plan: Plan, sampled: Sequence[Sequence[int]]) -> float | None:
        """Return the time that the tokens of a step with guesses would have taken without them.

        While costs are unknown, it is 0 if a draft model guesses, which may lose much, or None.
        """
        if not self.meter.is_fitted:
            return 0.0 if self.in_passes else None
        num_rows = sum(entry.num_new - len(entry.guesses) for entry in plan.scheduled)
        num_sampling = len(sampled)
        num_more = sum(map(len, sampled)) - num_sampling  # tokens of the steps that are saved
        costs = self.meter.costs
        of_token = costs.of_step(num_sampling, 0) / num_sampling
        return costs.of_step(num_rows, 0) + num_more * of_token

    def waited(self, plan: Plan) -> bool:
        """Return whether a step of decodes alone was launched late because of guesses."""
        del plan
        return False

    # ---- guesses --------------------------------------------------------------------------------

    def max_guesses_for(self, plan: Plan, entries: Sequence[ScheduledRequest]) -> list[int]:
        """Return how many guesses the token budget and each output's limit leave room for."""
        budget = self.max_step_tokens - sum(each.num_new for each in plan.scheduled)
        counts = []
        for entry in entries:
            room = entry.request.max_num_tokens - entry.request.num_planned_tokens
            counts.append(max(min(self.max_guesses, room, budget), 0))
            budget -= counts[-1]
        return counts

    def count_guesses(
        self,
        plan: Plan,
        entries: Sequence[ScheduledRequest],
        guesses: Sequence[Sequence[int]],
    ) -> list[int]:
        """Return how many of each request's guesses are expected to pay.

        None are begun while too much time was lost by guesses. Those that pay go on.
        """
        if self.allowance.is_used_up and not self._is_guessing:
            return [0] * len(entries)
        known = [self.acceptance_of(entry.request) for entry in entries]
        counts = choose_counts(
            [acceptance.rate for acceptance in known],
            [len(tokens) for tokens in guesses],
            sum(entry.num_new for entry in plan.scheduled),
            self.meter.costs,
            in_passes=self.in_passes,
        )
        for acceptance, tokens, count in zip(known, guesses, counts, strict=True):
            if tokens and not count:
                acceptance.recover()
        return counts

    def acceptance_of(self, request: Request) -> Acceptance:
        """Return a request's acceptance; that of a new one starts at the typical rate."""
        known = self._acceptance.get(request)
        if known is None:
            known = self._acceptance[request] = Acceptance(self._typical.rate)
        return known

    def add_guesses(self, entry: ScheduledRequest, guesses: Sequence[int]) -> None:
        """Let a request compute guesses too, as many as free blocks hold."""
        request, count = entry.request, len(guesses)
        while count and self.num_missing_blocks(request, count) > self.pool.num_free:
            count -= 1
        if not count:
            return
        new_blocks = self.blocks.append(request, self.num_missing_blocks(request, count))
        request.num_computed_tokens += count
        request.num_pending_tokens += count
        entry.num_new += count
        entry.num_logits += count
        entry.guesses = guesses[:count]
        entry.new_blocks = [*entry.new_blocks, *new_blocks]
