"""Lazy version of the engine's scheduler, which postpones updates that only change counters.

A request that decodes in the middle of a KV block gets one token per step. It needs no block, fills
none, and takes one token of the budget, whatever else happens. Such a request may *sleep*. Its
tokens are added up when it wakes: when it needs or fills a block, ends or is preempted. With blocks
of 16 tokens, a request sleeps through 14 of 16 decodes.

Steps are *steady* while all requests decode, none waits, none ends and there are enough blocks.
What happens in steady steps is known in advance until another request arrives, so they are not
planned.
"""

from array import array
from collections.abc import Sequence

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request, Status
from minimal_vllm_lab.sim.job import SimulatedRequest, simulated


class LazyScheduler(Scheduler):
    """Scheduler that decides like ``Scheduler``, but leaves sleeping requests out of its plans.

    Args:
        config: configuration of the scheduler.
        pool: pool of KV blocks.
        may_sleep: if False, no request sleeps, no step is steady, and plans are complete.
    """

    def __init__(self, config: SchedulerConfig, pool: BlockPool, *, may_sleep: bool) -> None:
        super().__init__(config, pool)
        self._may_sleep = may_sleep
        self._step = 0
        """Index of the next step."""
        self._awake: list[SimulatedRequest] = []
        """Running requests that are not asleep: they compute their prompts."""
        self._due: dict[int, list[SimulatedRequest]] = {}
        """All other running requests, by the step in which they wake."""
        self.num_asleep = 0
        """Number of sleeping requests."""
        self.asleep_context = 0
        """Total length of their contexts after the next step, in tokens."""

    # ---- one step -------------------------------------------------------------------------------

    def schedule_running(self, plan: Plan, budget: int) -> int:
        """Schedule the requests that are awake, and reserve one token of the budget per sleeper.

        Args:
            plan: plan to add to.
            budget: maximum number of tokens to schedule.

        Returns:
            The rest of the budget.
        """
        num_done = 0
        for request in self._wake():
            if request.status is not Status.RUNNING:  # preempted for an earlier request
                continue
            self._settle(request)
            others = len(self.running) - num_done - 1
            num_new = min(request.num_uncomputed_tokens, budget - others)
            missing = self.num_missing_blocks(request, num_new)
            if missing and not self.make_room(request, missing, plan):
                break
            self.schedule_tokens(plan, request, num_new)
            budget -= num_new
            num_done += 1
        return budget - self.num_asleep

    def preempt(self, request: Request) -> None:
        """Wake ``request`` up, then preempt it."""
        sleeper = simulated(request)
        if sleeper.asleep_since is not None and sleeper.wakes_at > self._step:
            self._due[sleeper.wakes_at].remove(sleeper)
        self._settle(sleeper)
        super().preempt(request)

    def update(self, plan: Plan, sampled: Sequence[Sequence[int]]) -> None:
        """Store the sampled tokens, then put to sleep the requests that may sleep."""
        super().update(plan, sampled)
        self._pass_step()
        self._awake = []
        for entry in plan.scheduled:
            request = simulated(entry.request)
            if request.status is Status.RUNNING:
                if entry.num_logits and self._may_sleep:
                    self._sleep(request)
                else:
                    self._awake.append(request)

    def _pass_step(self) -> None:
        self._step += 1
        self.asleep_context += self.num_asleep

    # ---- steady steps ---------------------------------------------------------------------------

    def count_steady_steps(self) -> int:
        """Return how many of the next steps are steady, at most the block size."""
        max_new_blocks = len(self.running) * self.blocks.num_groups  # in one block size of steps
        if self._awake or self.waiting or max_new_blocks > self.pool.num_free:
            return 0
        ends = min(simulated(request).ends_at for request in self.running)
        return min(ends - self._step, self.config.block_size)

    def pass_steady_steps(self, count: int) -> None:
        """Carry out ``count`` steady steps."""
        for _ in range(count):
            if self._step not in self._due:  # all requests sleep
                self._pass_step()
                continue
            plan = Plan()
            for request in self._wake():
                self._settle(request)
                self.schedule_tokens(plan, request, 1)
            self.update(plan, [[simulated(each).output_token] for each in plan.sampling])
        self.pool.take_evicted()

    # ---- sleep ----------------------------------------------------------------------------------

    def _wake(self) -> list[SimulatedRequest]:
        """Return the requests that are awake in the next step, in scheduling order."""
        return sorted([*self._awake, *self._due.pop(self._step, ())], key=self.key)

    def _sleep(self, request: SimulatedRequest) -> None:
        """Put a decoding request to sleep until it needs or fills a block, or ends."""
        block_size = self.config.block_size
        filled = request.num_computed_tokens % block_size
        num_steps = block_size - 1 - filled if filled else 0
        request.asleep_since = self._step
        request.ends_at = self._step + request.max_num_tokens - request.num_tokens - 1
        request.wakes_at = min(self._step + num_steps, request.ends_at)
        self._due.setdefault(request.wakes_at, []).append(request)
        self.num_asleep += 1
        self.asleep_context += request.num_computed_tokens + 1

    def _settle(self, request: SimulatedRequest) -> None:
        """Add the tokens that a sleeper has been given until the last step, and mark it awake."""
        if request.asleep_since is None:
            return
        num_tokens = self._step - request.asleep_since
        request.asleep_since = None
        request.token_ids.extend(array("i", [request.output_token]) * num_tokens)
        request.num_computed_tokens += num_tokens
        self.num_asleep -= 1
        self.asleep_context -= request.num_computed_tokens + 1

    def check(self) -> None:
        """Check the scheduler's invariants, after waking all requests.

        Raises:
            InvariantError: an invariant does not hold; the message names the request or
                block.
        """
        self._due.clear()
        self._awake = [simulated(request) for request in self.running]
        for request in self._awake:
            self._settle(request)
        super().check()
