"""The speculating scheduler of an engine that launches steps ahead.

A guess follows known tokens, so a step with guesses can't be planned before the tokens of the step
before have arrived. Meanwhile the GPU waits for the CPU. Therefore the engine alternates: where
guesses are expected to pay, each step waits for the one before, and elsewhere steps are launched
ahead.
"""

import time
from collections.abc import Callable, Sequence

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.speculating_scheduler import SpeculatingScheduler
from minimal_vllm.speculation.interface import Guesser
from minimal_vllm.speculation.pace import may_pay
from minimal_vllm.step.plan import Plan, ScheduledRequest


class AlternatingScheduler(SpeculatingScheduler):
    """Scheduler that adds guesses to steps in which all requests decode known tokens.

    Args:
        config: limits and policy.
        pool: blocks.
        guesser: proposes the tokens; see ``SpeculatingScheduler``.
        most_guesses: maximum number of guesses of a request in a step.
        most_tokens: maximum number of tokens in a step with guesses.
        in_passes: whether a draft model guesses, in one pass for each guess.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        guesser: Guesser,
        most_guesses: int,
        *,
        most_tokens: int,
        in_passes: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(config, pool, guesser, most_guesses, in_passes=in_passes, clock=clock)
        self.most_tokens = min(most_tokens, config.max_num_batched_tokens)

    def needs_pending_tokens(self) -> bool:
        """Return whether the next step should wait for pending tokens: to guess what follows."""
        return super().needs_pending_tokens() or self._has_guesses() or self._wants_guesses()

    def most_for(self, plan: Plan, entries: Sequence[ScheduledRequest]) -> list[int]:
        """Return how many guesses there is room for; none beside prompts and pending tokens."""
        all_known = all(entry.request.num_pending_tokens == entry.num_logits for entry in entries)
        if plan.is_steady_decode and all_known:
            return super().most_for(plan, entries)
        return [0] * len(entries)

    def _has_guesses(self) -> bool:
        """Return whether the step in flight has guesses."""
        return any(request.num_pending_tokens > 1 for request in self.running)

    def _wants_guesses(self) -> bool:
        """Return whether guesses are expected to pay in the next step, judging by known tokens."""
        if any(request.num_uncomputed_tokens != 1 for request in self.running):
            return False  # a prompt is being computed
        if not self._may_pay():
            return False
        entries = [
            ScheduledRequest(request, request.num_computed_tokens, 1, 1) for request in self.running
        ]
        plan = Plan(entries)
        most = super().most_for(plan, entries)
        if not any(self.count_guesses(plan, entries, [range(count) for count in most])):
            return False  # not even if the guesser had an idea for each request
        return any(self.count_guesses(plan, entries, self.guesser.propose(entries, most)))

    def _may_pay(self) -> bool:
        """Return whether any guess could pay. In a large batch this is all that is computed."""
        num_requests = len(self.running)
        if not 0 < num_requests < self.most_tokens:
            return False
        known = [self.acceptance_of(request) for request in self.running]
        best_rate = max(acceptance.rate for acceptance in known)
        if may_pay(best_rate, num_requests, self.meter.costs):
            return True
        for acceptance in known:
            acceptance.recover()
        return False
