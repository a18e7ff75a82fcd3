"""The scheduler: decides which requests compute how many tokens in the next step.

Continuous batching (Yu et al., *Orca*, OSDI 2022): the batch is rebuilt at each step, so a request
joins as soon as there is room and leaves as soon as it ends. Chunked prefill (Agrawal et al.,
*Sarathi-Serve*, OSDI 2024): a long prompt is computed in chunks, each as large as the token budget
that the running decodes leave. Preemption by recomputation (Kwon et al., *PagedAttention*, SOSP
2023, section 4.5): when blocks run out, the last running request gives up its blocks and waits
again.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence

from minimal_vllm.cache.block_pool import BlockPool, InvariantError
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.block_manager import BlockManager
from minimal_vllm.engine.scheduler_interface import PrefixCacheStats
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import FinishReason, Request, Status

SchedulingKey = Callable[[Request], tuple[int, int]]
"""Function from a request to its sort key, which is unique and never changes. The request with the
smallest key is served first and preempted last."""


def first_come_first_served(request: Request) -> tuple[int, int]:
    """Return a sort key that orders requests by arrival."""
    return 0, request.arrival


def by_priority(request: Request) -> tuple[int, int]:
    """Return a sort key that orders requests by priority, the smaller first, then by arrival."""
    return request.priority, request.arrival


SCHEDULING_POLICIES: dict[str, SchedulingKey] = {
    "fcfs": first_come_first_served,
    "priority": by_priority,
}


def _all_rows(config: SchedulerConfig) -> list[int]:
    return list(reversed(range(config.max_num_seqs)))  # popped from the end: 0 first


class Scheduler:
    """Owns the waiting requests and the running requests; its ``blocks`` hold their KV blocks.

    ``check`` verifies that ``waiting`` and ``running`` are in the policy's order, and that each
    running request has a row and exactly the blocks that its computed tokens need.
    """

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        self.config = config
        self.pool = pool
        self.blocks = BlockManager(config, pool)
        self.prefix_cache_stats = PrefixCacheStats()
        self.key = SCHEDULING_POLICIES[config.policy]
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self._free_rows = _all_rows(config)

    def reset(self) -> None:
        """Forget all requests and all cached blocks, whatever state an error left them in."""
        self.pool = self.pool.emptied()
        self.blocks = BlockManager(self.config, self.pool)
        self.waiting = []
        self.running = []
        self._free_rows = _all_rows(self.config)

    def add(self, request: Request) -> None:
        """Add a new request to the waiting requests.

        Raises:
            ValueError: the request can never run; it was not added.
        """
        if request.num_tokens == 0:
            raise ValueError("the prompt is empty: it must hold at least one token")
        if request.num_tokens >= self.config.max_model_len:
            raise ValueError(
                f"the prompt has {request.num_tokens} tokens, but max_model_len is "
                f"{self.config.max_model_len} and at least one more token must fit: "
                f"shorten the prompt"
            )
        wanted = request.params.max_tokens
        most = self.config.max_model_len
        request.max_num_tokens = min(most, request.num_tokens + wanted) if wanted else most
        self.enqueue(request)

    @property
    def has_work(self) -> bool:
        """True if any request is not finished."""
        return bool(self.running or self.waiting)

    def needs_pending_tokens(self) -> bool:
        """Return whether sampling the next step needs the ids of tokens that are still pending."""
        return any(request.num_pending_tokens and request.needs_history for request in self.running)

    # ---- one step -------------------------------------------------------------------------------

    def schedule(self) -> Plan:
        """Plan the next step: running requests first, then waiting ones.

        The plan can be empty while a step is in flight, if every request waits for its last token.
        """
        plan = Plan()
        budget = self.schedule_running(plan, self.config.max_num_batched_tokens)
        if not plan.preempted:
            self.admit_waiting(plan, budget)
        plan.evicted = self.pool.take_evicted()
        return plan

    def update(self, plan: Plan, sampled: Sequence[Sequence[int]]) -> None:
        """Append the sampled tokens to their requests, and end the requests that are complete.

        ``sampled`` has at most ``num_logits`` tokens for each request in ``plan.sampling``. An
        empty list ends its request with an error: its logits were not finite, or all forbidden. If
        there are fewer tokens than logits, guesses were rejected, and the counter moves back over
        them. A request that ended after the step was planned takes no tokens. Before anything else,
        blocks are released that sliding windows have passed.
        """
        if self.blocks.windows:
            for entry in plan.scheduled:
                self.blocks.release_passed(entry)
        entries = [entry for entry in plan.scheduled if entry.num_logits]
        for entry, tokens in zip(entries, sampled, strict=True):
            request, num_logits = entry.request, entry.num_logits
            request.num_pending_tokens -= num_logits
            if request.status is Status.FINISHED:
                continue
            if not tokens:
                reason = request.grammar.error if request.grammar else ""
                reason = reason or "no logit was finite or allowed"
                self.fail(request, f"no token could be sampled: {reason}")
            elif len(tokens) != num_logits:
                self.reject_guesses(entry, num_logits - len(tokens))
            for token_id in tokens:
                request.token_ids.append(token_id)
                self.blocks.store_full(request)
                if self.finish_if_done(request, token_id):
                    break  # the tokens after it are dropped

    def reject_guesses(self, entry: ScheduledRequest, count: int) -> None:
        """Move the counter back over the last ``count`` computed tokens, and free their blocks.

        Raises:
            ValueError: ``count`` is negative: the request got more tokens than it has logits.
        """
        request = entry.request
        if count < 0:
            raise ValueError(f"{request.request_id} got {-count} tokens more than it has logits")
        if request.status is Status.RUNNING:  # a preempted one has no computed tokens
            request.num_computed_tokens -= count
            entry.num_freed_blocks = self.blocks.drop_surplus(request)

    def finish(
        self,
        request: Request,
        reason: FinishReason,
        stop_reason: int | str | None = None,
        num_tokens: int | None = None,
    ) -> None:
        """End ``request``, whatever its state, and free its blocks.

        With ``num_tokens``, the tokens after the first ``num_tokens`` are dropped. A request that
        has ended keeps its reason, with two exceptions: an end at an earlier token replaces any
        reason, and a stop string replaces the length limit if the same token reached both.
        """
        ends_earlier = num_tokens is not None and num_tokens < request.num_tokens
        at_limit = reason is FinishReason.STOP and request.finish_reason is FinishReason.LENGTH
        if request.finished and not (ends_earlier or at_limit):
            return
        if ends_earlier:
            del request.token_ids[num_tokens:]
        if request.status is Status.RUNNING:
            self.running.remove(request)
            self.release(request)
        elif request.status is Status.WAITING:
            del self.waiting[bisect_left(self.waiting, self.key(request), key=self.key)]
        request.status = Status.FINISHED
        request.finish_reason = reason
        request.stop_reason = stop_reason

    def fail(self, request: Request, error: str) -> None:
        """End ``request`` with an error, and forget the blocks that it wrote."""
        self.blocks.forget(request)
        self.finish(request, FinishReason.ERROR, stop_reason=error)

    # ---- the running requests -------------------------------------------------------------------

    def schedule_running(self, plan: Plan, budget: int) -> int:
        """Plan tokens for each running request, in order, and return the remaining token budget."""
        position = 0
        while position < len(self.running):
            request = self.running[position]
            if request.awaits_its_end:
                position += 1
                continue
            # Keep one token for each of the following requests, so that no prompt stalls a decode.
            num_after = len(self.running) - position - 1
            num_new = min(request.num_uncomputed_tokens, budget - num_after)
            missing = self.num_missing_blocks(request, num_new)
            if missing and not self.make_room(request, missing, plan):
                break
            self.schedule_tokens(plan, request, num_new)
            budget -= num_new
            position += 1
        return budget

    def make_room(self, request: Request, missing: int, plan: Plan) -> bool:
        """Preempt from the back until ``missing`` blocks are free; False if it hits ``request``."""
        while missing > self.pool.num_free:
            victim = self.running.pop()
            self.preempt(victim)
            plan.preempted.append(victim)
            if victim is request:
                return False
        return True

    def preempt(self, request: Request) -> None:
        """Release the blocks of a request that has left ``running``, and let it wait again."""
        self.release(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.enqueue(request)

    # ---- the waiting requests -------------------------------------------------------------------

    def enqueue(self, request: Request) -> None:
        """Insert ``request`` into the waiting requests, in the policy's order.

        The key of a request never changes. A preempted request is therefore ahead of all requests
        that arrived after it, and resumes first without any other mechanism.
        """
        request.status = Status.WAITING
        insort(self.waiting, request, key=self.key)

    def admit_waiting(self, plan: Plan, budget: int) -> None:
        """Admit waiting requests, in order, while the budget, the limits and the pool allow."""
        max_running = self.config.max_running_after(len(self.running))
        while self.waiting and len(self.running) < max_running and budget > 0:
            request = self.waiting[0]
            cached = self.find_cached_prefix(request)
            num_new = request.num_tokens - self.blocks.num_tokens_in(cached)
            may_be_cut = self.config.enable_chunked_prefill and budget >= self.config.min_chunk
            if num_new > budget and not may_be_cut:
                break
            if not self.has_room_for(request, cached):
                break
            self.waiting.pop(0)
            self.admit(request, cached)
            plan.admitted.append(request)
            num_new = min(num_new, budget)
            self.schedule_tokens(plan, request, num_new, cached)
            budget -= num_new

    def find_cached_prefix(self, request: Request) -> list[int]:
        """Return the cached blocks that ``request`` begins with, if it may use them."""
        return self.blocks.find_cached_prefix(request) if self.may_use_cache(request) else []

    def may_use_cache(self, request: Request) -> bool:
        """Return whether cached blocks may be used: not if the prompt's logprobs are asked for."""
        return self.config.enable_prefix_caching and request.params.prompt_logprobs is None

    def has_room_for(self, request: Request, cached: list[int]) -> bool:
        """Return whether all tokens of ``request`` fit into the free blocks.

        One block per running request is left free, so that the next steps don't preempt what was
        just admitted.
        """
        wanted = self.config.max_blocks_for(request.num_tokens)
        wanted += len(self.running) * self.blocks.num_groups
        if wanted <= self.pool.num_free:
            return True  # even if nothing is shared
        return wanted - self.blocks.num_in_use(cached) <= self.pool.num_free

    def admit(self, request: Request, cached: list[int]) -> None:
        """Let ``request`` run; its block table begins with the blocks ``cached``."""
        num_cached = self.blocks.num_tokens_in(cached)
        self.blocks.share(request, cached)
        request.num_computed_tokens = num_cached
        request.row = self._free_rows.pop()
        request.status = Status.RUNNING
        insort(self.running, request, key=self.key)
        if request.num_cached_tokens is None:
            request.num_cached_tokens = num_cached
            if self.may_use_cache(request):
                self.prefix_cache_stats.queries += request.num_tokens
                self.prefix_cache_stats.hits += num_cached

    # ---- blocks and rows ------------------------------------------------------------------------

    def schedule_tokens(
        self, plan: Plan, request: Request, num_new: int, cached: Sequence[int] = ()
    ) -> None:
        """Add the next ``num_new`` tokens of ``request`` to the plan, and allocate their blocks.

        The caller has made sure that the pool has room. ``cached`` are the blocks that were found
        in the prefix cache, if ``request`` was just admitted.
        """
        start = request.num_computed_tokens
        new_blocks = self.blocks.append(request, self.num_missing_blocks(request, num_new))
        request.num_computed_tokens = start + num_new
        self.blocks.store_full(request)
        num_logits = 1 if request.num_uncomputed_tokens == 0 else 0
        request.num_pending_tokens += num_logits
        plan.scheduled.append(
            ScheduledRequest(request, start, num_new, num_logits, cached, new_blocks)
        )

    def num_missing_blocks(self, request: Request, num_new: int) -> int:
        """Return the number of blocks ``request`` lacks to compute ``num_new`` more tokens."""
        return self.blocks.num_missing(request, num_new)

    def release(self, request: Request) -> None:
        """Return the blocks and the row of ``request``."""
        self.blocks.release(request)
        self._free_rows.append(request.row)

    # ---- the end of a request -------------------------------------------------------------------

    def finish_if_done(self, request: Request, token_id: int) -> bool:
        """End ``request`` if its newest token, ``token_id``, completes it; True if it has ended."""
        stops = token_id in request.stop_token_ids
        if stops and request.num_output_tokens >= request.params.min_tokens:
            is_eos = token_id in request.eos_token_ids
            self.finish(request, FinishReason.STOP, stop_reason=None if is_eos else token_id)
        elif request.grammar is not None and request.grammar.is_complete(request):
            self.finish(request, FinishReason.STOP)
        elif len(request.token_ids) >= request.max_num_tokens:
            self.finish(request, FinishReason.LENGTH)
        else:
            return False
        return True

    # ---- proof ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Verify the invariants of the scheduler and its pool. Call it between two steps.

        Raises:
            InvariantError: an invariant is broken; the message names the request or block.
        """
        self.blocks.check(self.running)
        for requests in (self.waiting, self.running):
            if requests != sorted(requests, key=self.key):
                raise InvariantError("the requests are out of order")
        if len(self.running) > self.config.max_num_seqs:
            raise InvariantError(f"{len(self.running)} requests run at once")
        for request in self.running:
            missing = self.num_missing_blocks(request, 0)
            if request.status is not Status.RUNNING or missing != 0:
                raise InvariantError(
                    f"running request {request.request_id} is {request.status.value} and has "
                    f"{len(request.block_table)} blocks, {missing} too few"
                )
        rows = [request.row for request in self.running] + self._free_rows
        if sorted(rows) != list(range(self.config.max_num_seqs)):
            raise InvariantError("a row has no owner, or two")
