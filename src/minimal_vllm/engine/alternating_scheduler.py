"""The speculating scheduler of an engine that launches steps ahead.

A draft model or head guesses on the GPU, behind the tokens that are kept there. So a step with
guesses can be launched while the step before, with guesses too, still runs::

    planned        5 6 7 +2 guesses          step 1 begins at 7, computes 7 8 9
                           5 6 7 8 9 10 +2   step 2 begins at 10, if both guesses hold
    1 of 2 holds   5 6 7 8 9                 step 1 has ended: step 2 began at 9, the GPU knew

The plan assumes that all guesses of the step in flight hold: it reserves the most blocks that can
be needed, and the counter is as high as it can be. The GPU reads where each request really stands
from the table of rows. When the tokens of the first step arrive, ``update`` moves the counter back,
``start`` of the second step with it, and releases the blocks that neither needs.

Other guesses are made on the CPU, behind known tokens. So such a step can't be planned before the
tokens of the step before have arrived. Meanwhile the GPU waits for the CPU. Therefore the engine
alternates: where guesses are expected to pay, each step waits for the one before, and elsewhere
steps are launched ahead. A draft model or head waits as well to begin with guesses.
"""

import time
from collections.abc import Callable, Sequence

from minimal_vllm.cache.block_pool import BlockPool, InvariantError
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.speculating_scheduler import SpeculatingScheduler
from minimal_vllm.sampling.row import needs_only_numbers
from minimal_vllm.speculation.allowance import SHARE
from minimal_vllm.speculation.interface import Guesser
from minimal_vllm.speculation.pace import may_pay
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import Request


class AlternatingScheduler(SpeculatingScheduler):
    """Scheduler that adds guesses to steps in which all requests decode.

    Args:
        config: limits and policy.
        pool: blocks.
        guesser: proposes the tokens; see ``SpeculatingScheduler``.
        max_guesses: maximum number of guesses of a request in a step.
        max_step_tokens: maximum number of tokens in a step with guesses.
        in_passes: whether a draft model guesses, in one pass for each guess.
        may_follow: whether guesses may follow guesses that are in flight, because they are made on
            the GPU.
        may_lose: see ``SpeculatingScheduler``.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        guesser: Guesser,
        max_guesses: int,
        *,
        max_step_tokens: int,
        in_passes: bool = False,
        may_follow: bool = False,
        may_lose: float = SHARE,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(
            config,
            pool,
            guesser,
            max_guesses,
            in_passes=in_passes,
            may_lose=may_lose,
            clock=clock,
        )
        self.max_step_tokens = min(max_step_tokens, config.max_num_batched_tokens)
        self._may_follow = may_follow
        self._waits = False
        """Whether the next plan waits for tokens because of guesses."""
        self._late: Plan | None = None
        """The newest plan that waited, and has neither guesses nor prompts. What a prompt takes is
        hard to predict, and a wait is short beside it."""
        self._newest: Plan | None = None
        self._following: dict[Request, ScheduledRequest] = {}
        """Entries of the newest plan that follow guesses of a step in flight."""

    def needs_pending_tokens(self) -> bool:
        """Return whether the next step should wait for pending tokens: to guess what follows."""
        self._waits = False
        if super().needs_pending_tokens():
            return True
        self._waits = not self._may_go_on() if self._has_guesses() else self._wants_guesses()
        return self._waits

    def schedule(self) -> Plan:
        """Plan the next step; see ``SpeculatingScheduler``."""
        self._newest = plan = super().schedule()
        self._following = {
            entry.request: entry for entry in plan.scheduled if entry.follows_guesses
        }
        has_guesses = any(entry.guesses for entry in plan.scheduled)
        if self._waits and plan.is_steady_decode and not has_guesses:
            self._late = plan
        self._waits = False
        return plan

    def waited(self, plan: Plan) -> bool:
        """Return whether a step of decodes alone was launched late because of guesses."""
        return plan is self._late

    def schedule_tokens(
        self, plan: Plan, request: Request, num_new: int, cached: Sequence[int] = ()
    ) -> None:
        """Add tokens to the plan, and note whether they follow guesses in flight."""
        follows = has_guesses(request)
        super().schedule_tokens(plan, request, num_new, cached)
        plan.scheduled[-1].follows_guesses = follows

    def update(self, plan: Plan, sampled: Sequence[Sequence[int]]) -> None:
        """Append the sampled tokens; see ``SpeculatingScheduler``."""
        if plan is self._newest:  # nothing follows it
            self._following = {}
        super().update(plan, sampled)

    def reject_guesses(self, entry: ScheduledRequest, count: int) -> None:
        """Move the counter back, and the start of the step that follows in flight."""
        super().reject_guesses(entry, count)
        if entry.request in self._following:
            self._following[entry.request].start -= count

    def reset(self) -> None:
        """Forget all requests and all cached blocks."""
        super().reset()
        self._newest, self._following = None, {}
        self._waits, self._late = False, None

    def max_guesses_for(self, plan: Plan, entries: Sequence[ScheduledRequest]) -> list[int]:
        """Return how many guesses there is room for; none beside prompts.

        Behind guesses in flight, only the requests that have them get guesses: a draft model has
        not seen the last tokens of the others. Elsewhere there are none behind pending tokens.
        """
        most = super().max_guesses_for(plan, entries)
        if not plan.is_steady_decode:
            return [0] * len(entries)
        if any(entry.follows_guesses for entry in entries):
            return [
                count if entry.follows_guesses and self._may_follow else 0
                for entry, count in zip(entries, most, strict=True)
            ]
        all_known = all(entry.request.num_pending_tokens == entry.num_logits for entry in entries)
        return most if all_known else [0] * len(entries)

    def check(self) -> None:
        """Verify the invariants; see ``Scheduler``. What follows guesses ends at the counter."""
        super().check()
        for request, entry in self._following.items():
            end = entry.start + entry.num_new
            if request in self.running and end != request.num_computed_tokens:
                raise InvariantError(
                    f"{request.request_id} follows guesses up to {end}, but its counter is "
                    f"{request.num_computed_tokens}"
                )

    def _has_guesses(self) -> bool:
        """Return whether the step in flight has guesses."""
        return any(map(has_guesses, self.running))

    def _may_go_on(self) -> bool:
        """Return whether the next step may be planned before it is known how many guesses hold.

        That step takes positions and tokens from the GPU, which only decodes do, and samples by
        numbers alone. A request that is to begin with guesses needs to know its tokens.
        """
        if not self._may_follow or self.waiting:
            return False
        if any(request.num_uncomputed_tokens != 1 for request in self.running):
            return False
        if not all(map(needs_only_numbers, self.running)):
            return False
        counts = self._expected_counts()
        return all(
            has_guesses(request) or not count
            for request, count in zip(self.running, counts, strict=True)
        )

    def _wants_guesses(self) -> bool:
        """Return whether guesses are expected to pay in the next step, judging by known tokens."""
        if any(request.num_uncomputed_tokens != 1 for request in self.running):
            return False  # a prompt is being computed
        if not self._may_pay():
            return False
        if not any(self._expected_counts()):
            return False  # not even if the guesser had an idea for each request
        plan = self._decodes()
        most = super().max_guesses_for(plan, plan.scheduled)
        guesses = self.guesser.propose(plan.scheduled, most)
        return any(self.count_guesses(plan, plan.scheduled, guesses))

    def _decodes(self) -> Plan:
        """Return a plan in which all requests decode."""
        return Plan(
            [
                ScheduledRequest(request, request.num_computed_tokens, 1, 1)
                for request in self.running
            ]
        )

    def _expected_counts(self) -> list[int]:
        """Return the number of guesses of each request, if the guesser has as many as allowed."""
        plan = self._decodes()
        most = super().max_guesses_for(plan, plan.scheduled)
        return self.count_guesses(plan, plan.scheduled, [range(count) for count in most])

    def _may_pay(self) -> bool:
        """Return whether any guess could pay. In a large batch this is all that is computed."""
        num_requests = len(self.running)
        if not 0 < num_requests < self.max_step_tokens:
            return False
        known = [self.acceptance_of(request) for request in self.running]
        best_rate = max(acceptance.rate for acceptance in known)
        if may_pay(best_rate, num_requests, self.meter.costs):
            return True
        for acceptance in known:
            acceptance.recover()
        return False


def has_guesses(request: Request) -> bool:
    """Return whether the step in flight has guesses for a request."""
    return request.num_pending_tokens > 1
