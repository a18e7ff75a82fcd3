"""Which request computes how many tokens in the next step.

Continuous batching (Yu et al., *Orca*, OSDI 2022): the batch is put together anew at each step, so
that a request joins when there is room and leaves when it ends. Chunked prefill (Agrawal et al.,
*Sarathi-Serve*, OSDI 2024): a long prompt is computed in chunks of what the token budget leaves
beside the running decodes. Preemption by recomputation (Kwon et al., *PagedAttention*, SOSP 2023,
section 4.5): when blocks run out, the last request gives up all of its own and waits again.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Sequence

from minimal_vllm.cache.block_pool import BlockPool, InvariantError
from minimal_vllm.cache.prefix_hash import extend_block_hashes
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler_interface import PrefixCacheStats
from minimal_vllm.sampling.row import NO_TOKEN
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import FinishReason, Request, Status

SchedulingKey = Callable[[Request], tuple[int, int]]
"""Gives each request a unique place, which it keeps: the smallest is served first and preempted
last."""


def first_come_first_served(request: Request) -> tuple[int, int]:
    """By arrival alone."""
    return 0, request.arrival


def by_priority(request: Request) -> tuple[int, int]:
    """By priority (smaller first), then by arrival."""
    return request.priority, request.arrival


SCHEDULING_POLICIES: dict[str, SchedulingKey] = {
    "fcfs": first_come_first_served,
    "priority": by_priority,
}


def _all_rows(config: SchedulerConfig) -> list[int]:
    return list(reversed(range(config.max_num_seqs)))  # popped from the end: 0 first


class Scheduler:
    """Owns the waiting and the running requests and their blocks.

    Invariants, proved by ``check``: ``waiting`` and ``running`` are in the policy's order; a
    running request's table has just the blocks that its computed tokens need; nobody else has any.
    """

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        if config.blocks_for(config.max_model_len) > pool.num_blocks:
            raise ValueError(
                f"a request of max_model_len={config.max_model_len} tokens needs "
                f"{config.blocks_for(config.max_model_len)} blocks of {config.block_size}, but the "
                f"pool has {pool.num_blocks}: lower max_model_len or enlarge the pool"
            )
        self.config = config
        self.pool = pool
        self.prefix_cache_stats = PrefixCacheStats()
        self.key = SCHEDULING_POLICIES[config.policy]
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self._free_rows = _all_rows(config)

    def reset(self) -> None:
        """Forget all requests and all that is cached, whatever state it was left in."""
        self.pool = self.pool.emptied()
        self.waiting = []
        self.running = []
        self._free_rows = _all_rows(self.config)

    def add(self, request: Request) -> None:
        """Let a new request wait for its turn.

        Raises:
            ValueError: it can never run; it was not added.
        """
        if request.num_tokens == 0:
            raise ValueError("the prompt is empty: it must hold at least one token")
        if request.num_tokens >= self.config.max_model_len:
            raise ValueError(
                f"the prompt has {request.num_tokens} tokens, but max_model_len is "
                f"{self.config.max_model_len} and one token at least must fit behind it: "
                f"shorten the prompt"
            )
        wanted = request.params.max_tokens
        most = self.config.max_model_len
        request.max_num_tokens = min(most, request.num_tokens + wanted) if wanted else most
        self.enqueue(request)

    @property
    def has_work(self) -> bool:
        """Whether any request is not finished."""
        return bool(self.running or self.waiting)

    def needs_pending_tokens(self) -> bool:
        """Whether what comes next depends, beyond the logits, on tokens that nobody knows yet."""
        return any(request.num_pending_tokens and request.needs_history for request in self.running)

    # ---- one step -------------------------------------------------------------------------------

    def schedule(self) -> Plan:
        """Choose what the next step computes: running requests first, then new ones.

        The plan may be empty if a step is in flight: all may wait for their last token.
        """
        plan = Plan()
        budget = self.schedule_running(plan, self.config.max_num_batched_tokens)
        if not plan.preempted:
            self.admit_waiting(plan, budget)
        plan.evicted = self.pool.take_evicted()
        return plan

    def update(self, plan: Plan, token_ids: list[int]) -> None:
        """Append the sampled tokens, one per scheduled request that samples; end who is done.

        ``NO_TOKEN`` ends its request with an error: its logits were not finite, or all forbidden.
        A request that ended after the step was planned gets nothing more.
        """
        for request, token_id in zip(plan.sampling, token_ids, strict=True):
            request.num_pending_tokens -= 1
            if request.finished:
                continue
            if token_id == NO_TOKEN:
                reason = request.grammar.error if request.grammar else ""
                reason = reason or "no logit was finite or allowed"
                self.fail(request, f"no token could be sampled: {reason}")
            else:
                request.token_ids.append(token_id)
                self.store_full_blocks(request)
                self.finish_if_done(request, token_id)

    def finish(
        self, request: Request, reason: FinishReason, stop_reason: int | str | None = None
    ) -> None:
        """End ``request``, whatever its state, and free its blocks.

        The first reason holds, but for a stop string found in the very token that also reached
        the length limit.
        """
        if request.status is Status.FINISHED and (
            reason is not FinishReason.STOP or request.finish_reason is not FinishReason.LENGTH
        ):
            return
        if request.status is Status.RUNNING:
            self.running.remove(request)
            self.release(request)
        elif request.status is Status.WAITING:
            del self.waiting[bisect_left(self.waiting, self.key(request), key=self.key)]
        request.status = Status.FINISHED
        request.finish_reason = reason
        request.stop_reason = stop_reason

    def fail(self, request: Request, error: str) -> None:
        """End ``request`` with an error; what it wrote to the cache can't be trusted."""
        # Preempted while the step ran, it has no table any more, but may be found by its hashes.
        self.pool.forget(request.block_table or self.pool.find_prefix(request.block_hashes))
        self.finish(request, FinishReason.ERROR, stop_reason=error)

    # ---- the running requests -------------------------------------------------------------------

    def schedule_running(self, plan: Plan, budget: int) -> int:
        """Give each running request tokens to compute, in order, and return the budget left."""
        position = 0
        while position < len(self.running):
            request = self.running[position]
            if request.awaits_its_end:
                position += 1
                continue
            # Each request behind this one is owed a token, so that no prompt stalls a decode.
            behind = len(self.running) - position - 1
            num_new = min(request.num_uncomputed_tokens, budget - behind)
            missing = self.num_missing_blocks(request, num_new)
            if missing and not self.make_room(request, missing, plan):
                break
            self.schedule_tokens(plan, request, num_new)
            budget -= num_new
            position += 1
        return budget

    def make_room(self, request: Request, missing: int, plan: Plan) -> bool:
        """Preempt from the back until so many blocks are free; False if ``request`` went itself."""
        while missing > self.pool.num_free:
            victim = self.running.pop()
            self.preempt(victim)
            plan.preempted.append(victim)
            if victim is request:
                return False
        return True

    def preempt(self, request: Request) -> None:
        """Take all blocks from a request that left ``running``, and let it wait again."""
        self.release(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.enqueue(request)

    # ---- the waiting requests -------------------------------------------------------------------

    def enqueue(self, request: Request) -> None:
        """Let ``request`` wait for its turn, be it for the first time or again.

        Its key is always the same. So one that was preempted is before all who arrived after it:
        no other mechanism is needed to make it resume first.
        """
        request.status = Status.WAITING
        insort(self.waiting, request, key=self.key)

    def admit_waiting(self, plan: Plan, budget: int) -> None:
        """Admit waiting requests, in order, while the budget, the limits and the pool allow."""
        while self.waiting and len(self.running) < self.config.max_num_seqs and budget > 0:
            request = self.waiting[0]
            cached = self.find_cached_prefix(request)
            num_new = request.num_tokens - len(cached) * self.config.block_size
            if num_new > budget and not self.config.enable_chunked_prefill:
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
        """Cached blocks that ``request`` begins with.

        Never all of it, since its last token's logits are wanted.
        """
        if not self.may_use_cache(request):
            return []
        self._extend_hashes(request)
        usable = (request.num_tokens - 1) // self.config.block_size
        return self.pool.find_prefix(request.block_hashes[:usable])

    def may_use_cache(self, request: Request) -> bool:
        """Not if the logits of its whole prompt are wanted: they have to be computed."""
        return self.config.enable_prefix_caching and request.params.prompt_logprobs is None

    def has_room_for(self, request: Request, cached: list[int]) -> bool:
        """Whether all of ``request`` fits now.

        It must leave each running one a block to grow into: who is admitted should not have to be
        preempted at once.
        """
        wanted = self.config.blocks_for(request.num_tokens) + len(self.running)
        if wanted <= self.pool.num_free:
            return True  # whatever of it is shared
        held_by_others = sum(not self.pool.is_evictable(block) for block in cached)
        return wanted - held_by_others <= self.pool.num_free

    def admit(self, request: Request, cached: list[int]) -> None:
        """Make ``request`` a running request that begins with the blocks ``cached``."""
        num_cached = len(cached) * self.config.block_size
        self.pool.share(cached)
        request.block_table.extend(cached)
        request.num_computed_tokens = num_cached
        request.num_findable_blocks = len(cached)
        request.row = self._free_rows.pop()
        request.status = Status.RUNNING
        insort(self.running, request, key=self.key)
        if request.num_cached_tokens is None:
            request.num_cached_tokens = num_cached
            if self.may_use_cache(request):
                self.prefix_cache_stats.queries += request.num_tokens
                self.prefix_cache_stats.hits += num_cached

    # ---- blocks ---------------------------------------------------------------------------------

    def schedule_tokens(
        self, plan: Plan, request: Request, num_new: int, cached: Sequence[int] = ()
    ) -> None:
        """Put ``num_new`` tokens of ``request`` into the plan, with the missing blocks for them."""
        start = request.num_computed_tokens
        missing = self.num_missing_blocks(request, num_new)
        new_blocks = self.pool.allocate(missing) if missing else ()
        request.block_table.extend(new_blocks)
        request.num_computed_tokens = start + num_new
        self.store_full_blocks(request)
        samples = request.num_uncomputed_tokens == 0
        request.num_pending_tokens += samples
        plan.scheduled.append(
            ScheduledRequest(request, start, num_new, samples, cached, new_blocks)
        )

    def num_missing_blocks(self, request: Request, num_new: int) -> int:
        """Return the number of blocks ``request`` lacks to compute ``num_new`` more tokens."""
        needed = self.config.blocks_for(request.num_computed_tokens + num_new)
        return needed - len(request.block_table)

    def store_full_blocks(self, request: Request) -> None:
        """Make the blocks findable that are full after this step, of tokens that are known.

        A request admitted later in this very step may already share them: in each layer, all keys
        and values of a step are written before any are read.
        """
        num_known = min(request.num_computed_tokens, request.num_tokens)
        first, end = request.num_findable_blocks, num_known // self.config.block_size
        if end <= first or not self.config.enable_prefix_caching:
            return  # as in most steps of a decoding request
        self._extend_hashes(request)
        for index in range(first, end):
            self.pool.store(request.block_table[index], request.block_hashes[index])
        request.num_findable_blocks = end

    def _extend_hashes(self, request: Request) -> None:
        extend_block_hashes(
            request.block_hashes, request.token_ids, self.config.block_size, request.cache_salt
        )

    def release(self, request: Request) -> None:
        """Give back the blocks and the row of ``request``."""
        self.pool.release(request.block_table)
        del request.block_table[:]
        self._free_rows.append(request.row)

    # ---- the end of a request -------------------------------------------------------------------

    def finish_if_done(self, request: Request, token_id: int) -> None:
        """End ``request`` if its newest token, ``token_id``, is its last."""
        stops = token_id in request.stop_token_ids
        if stops and request.num_output_tokens >= request.params.min_tokens:
            is_eos = token_id in request.eos_token_ids
            self.finish(request, FinishReason.STOP, stop_reason=None if is_eos else token_id)
        elif request.grammar is not None and request.grammar.is_complete(request):
            self.finish(request, FinishReason.STOP)
        elif request.num_tokens >= request.max_num_tokens:
            self.finish(request, FinishReason.LENGTH)

    # ---- proof ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Prove the scheduler's and the pool's invariants between two steps.

        Raises:
            InvariantError: naming the request or block and what is wrong with it.
        """
        self.pool.check(request.block_table for request in self.running)
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
        self._check_partly_filled_blocks()
        rows = [request.row for request in self.running] + self._free_rows
        if sorted(rows) != list(range(self.config.max_num_seqs)):
            raise InvariantError("a row has no owner, or two")

    def _check_partly_filled_blocks(self) -> None:
        owners = Counter(block for request in self.running for block in request.block_table)
        for request in self.running:
            is_partly_filled = request.num_computed_tokens % self.config.block_size
            if is_partly_filled and owners[request.block_table[-1]] != 1:
                raise InvariantError(f"{request.request_id}'s partly filled block is shared")
