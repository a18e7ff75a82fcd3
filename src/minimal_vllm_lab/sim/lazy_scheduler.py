"""The engine's scheduler, putting off what changes nothing but counters.

A request that decodes in the middle of a KV block gets one token a step: it needs no block, fills
none, and takes one token of the budget, whatever happens around it. So it may *sleep*: its tokens
are added up when something happens to it that matters: it needs or fills a block, it ends, or it is
preempted. With blocks of 16 tokens, 14 of 16 decodes are slept through.

Steps are *steady* while all requests decode, none waits, none ends and there are blocks for all:
what happens in them is known beforehand, until another request comes. They are not planned.
"""

from array import array

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request, Status
from minimal_vllm_lab.sim.job import SimulatedRequest, simulated


class LazyScheduler(Scheduler):
    """Makes the same decisions as ``Scheduler``; a plan leaves out who sleeps through the step.

    Args:
        config: as the scheduler's.
        pool: as the scheduler's.
        may_sleep: if False, nobody sleeps, no steps are steady, and plans are whole.
    """

    def __init__(self, config: SchedulerConfig, pool: BlockPool, *, may_sleep: bool) -> None:
        super().__init__(config, pool)
        self._may_sleep = may_sleep
        self._step = 0
        """The number of the next step."""
        self._awake: list[SimulatedRequest] = []
        """Those of ``running`` who don't sleep: they compute their prompts."""
        self._due: dict[int, list[SimulatedRequest]] = {}
        """All others, by the step in which they wake."""
        self.num_asleep = 0
        """The number of these."""
        self.asleep_context = 0
        """The length of their contexts after the next step, together."""

    # ---- one step -------------------------------------------------------------------------------

    def schedule_running(self, plan: Plan, budget: int) -> int:
        """As the scheduler's, for those awake; each one asleep gets the token it is owed."""
        num_done = 0
        for request in self._wake():
            if request.status is not Status.RUNNING:  # preempted by one before it
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

    def update(self, plan: Plan, token_ids: list[int]) -> None:
        """As the scheduler's; then let sleep who can."""
        super().update(plan, token_ids)
        self._pass_step()
        self._awake = []
        for entry in plan.scheduled:
            request = simulated(entry.request)
            if request.status is Status.RUNNING:
                if entry.samples and self._may_sleep:
                    self._sleep(request)
                else:
                    self._awake.append(request)

    def _pass_step(self) -> None:
        self._step += 1
        self.asleep_context += self.num_asleep

    # ---- steady steps ---------------------------------------------------------------------------

    def count_steady_steps(self) -> int:
        """How many steps will be steady from now on, up to the length of a block."""
        if self._awake or self.waiting or len(self.running) > self.pool.num_free:
            return 0  # in so many steps, each may need one block
        ends = min(simulated(request).ends_at for request in self.running)
        return min(ends - self._step, self.config.block_size)

    def pass_steady_steps(self, count: int) -> None:
        """Let so many pass."""
        for _ in range(count):
            if self._step not in self._due:  # all sleep
                self._pass_step()
                continue
            plan = Plan()
            for request in self._wake():
                self._settle(request)
                self.schedule_tokens(plan, request, 1)
            self.update(plan, [simulated(each).output_token for each in plan.sampling])
        self.pool.take_evicted()

    # ---- sleep ----------------------------------------------------------------------------------

    def _wake(self) -> list[SimulatedRequest]:
        """Who is awake in the next step, in the order in which they are served."""
        return sorted([*self._awake, *self._due.pop(self._step, ())], key=self.key)

    def _sleep(self, request: SimulatedRequest) -> None:
        """Let a decoding request sleep until it needs or fills a block, or ends."""
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
        """Give a sleeper what it got in its sleep, up to the step before this one."""
        if request.asleep_since is None:
            return
        num_tokens = self._step - request.asleep_since
        request.asleep_since = None
        request.token_ids.extend(array("i", [request.output_token]) * num_tokens)
        request.num_computed_tokens += num_tokens
        self.num_asleep -= 1
        self.asleep_context -= request.num_computed_tokens + 1

    def check(self) -> None:
        """As the scheduler's; wakes everybody."""
        self._due.clear()
        self._awake = [simulated(request) for request in self.running]
        for request in self._awake:
            self._settle(request)
        super().check()
