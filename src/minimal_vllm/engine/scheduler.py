"""Which request computes how many tokens in the next step.

Continuous batching (Yu et al., *Orca*, OSDI 2022): the batch is put together anew at each step, so
that a request joins when there is room and leaves when it ends. Chunked prefill (Agrawal et al.,
*Sarathi-Serve*, OSDI 2024): a long prompt is computed in chunks of what the token budget leaves
beside the running decodes. Preemption by recomputation (Kwon et al., *PagedAttention*, SOSP 2023,
section 4.5): when blocks run out, the last request gives up all of its own and waits again.
"""

from bisect import insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from minimal_vllm.cache.block_pool import BlockPool, InvariantError
from minimal_vllm.cache.prefix_hash import extend_block_hashes
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.request import FinishReason, Request, Status
from minimal_vllm.engine.scheduling_policies import SCHEDULING_POLICIES
from minimal_vllm.sampling.row import NO_TOKEN


@dataclass(slots=True)
class ScheduledRequest:
    """Compute ``num_new`` tokens of ``request``, beginning with token ``start``."""

    request: Request
    start: int
    num_new: int
    samples: bool
    """Whether the counter catches up with the tokens, so that the logits give the next one."""
    cached_blocks: Sequence[int] = ()
    """Found in the prefix cache, if it was admitted in this step: its block table's beginning."""
    new_blocks: Sequence[int] = ()
    """What its block table was then extended by."""


@dataclass(slots=True)
class Plan:
    """What one step does. Once made it is carried out: the requests' counters include it."""

    scheduled: list[ScheduledRequest] = field(default_factory=list)
    """What is computed: the running requests, then the admitted ones."""
    admitted: list[Request] = field(default_factory=list)
    """Who was let in from the queue."""
    preempted: list[Request] = field(default_factory=list)
    """Who lost all blocks, and waits again."""
    evicted: list[int] = field(default_factory=list)
    """Blocks whose cached content was forgotten, to be written anew."""

    @property
    def sampling(self) -> list[Request]:
        """The requests whose counters catch up, in order: each gets a token."""
        return [entry.request for entry in self.scheduled if entry.samples]


def _all_rows(config: SchedulerConfig) -> list[int]:
    return list(reversed(range(config.max_num_seqs)))  # popped from the end: 0 first


@dataclass(slots=True)
class PrefixCacheStats:
    """Prompt tokens looked up in the prefix cache, and found, since the start."""

    queries: int = 0
    hits: int = 0


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
        self._key = SCHEDULING_POLICIES[config.policy]
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
        self._wait(request)

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
        budget = self._schedule_running(plan, self.config.max_num_batched_tokens)
        if not plan.preempted:
            self._admit_waiting(plan, budget)
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
                self._store_full_blocks(request)
                self._finish_if_done(request, token_id)

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
            self._release(request)
        elif request.status is Status.WAITING:
            self.waiting.remove(request)
        request.status = Status.FINISHED
        request.finish_reason = reason
        request.stop_reason = stop_reason

    def fail(self, request: Request, error: str) -> None:
        """End ``request`` with an error; what it wrote to the cache can't be trusted."""
        # Preempted while the step ran, it has no table any more, but may be found by its hashes.
        self.pool.forget(request.block_table or self.pool.find_prefix(request.block_hashes))
        self.finish(request, FinishReason.ERROR, stop_reason=error)

    # ---- the running requests -------------------------------------------------------------------

    def _schedule_running(self, plan: Plan, budget: int) -> int:
        position = 0
        while position < len(self.running):
            request = self.running[position]
            if request.awaits_its_end:
                position += 1
                continue
            # Each request behind this one is owed a token, so that no prompt stalls a decode.
            behind = len(self.running) - position - 1
            num_new = min(request.num_uncomputed_tokens, budget - behind)
            missing = self._num_missing_blocks(request, num_new)
            if missing and not self._make_room(request, missing, plan):
                break
            self._schedule(plan, request, num_new)
            budget -= num_new
            position += 1
        return budget

    def _make_room(self, request: Request, missing: int, plan: Plan) -> bool:
        """Preempt from the back until so many blocks are free; False if ``request`` went itself."""
        while missing > self.pool.num_free:
            victim = self.running.pop()
            self._preempt(victim)
            plan.preempted.append(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self._release(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self._wait(request)

    # ---- the waiting requests -------------------------------------------------------------------

    def _wait(self, request: Request) -> None:
        """Let ``request`` wait for its turn, be it for the first time or again.

        Its key is always the same. So one that was preempted is before all who arrived after it:
        no other mechanism is needed to make it resume first.
        """
        request.status = Status.WAITING
        insort(self.waiting, request, key=self._key)

    def _admit_waiting(self, plan: Plan, budget: int) -> None:
        while self.waiting and len(self.running) < self.config.max_num_seqs and budget > 0:
            request = self.waiting[0]
            cached = self._find_cached_prefix(request)
            num_new = request.num_tokens - len(cached) * self.config.block_size
            if num_new > budget and not self.config.enable_chunked_prefill:
                break
            if not self._has_room_for(request, cached):
                break
            self.waiting.pop(0)
            self._admit(request, cached)
            plan.admitted.append(request)
            num_new = min(num_new, budget)
            self._schedule(plan, request, num_new, cached)
            budget -= num_new

    def _find_cached_prefix(self, request: Request) -> list[int]:
        """Cached blocks that ``request`` begins with.

        Never all of it, since its last token's logits are wanted.
        """
        if not self._may_use_cache(request):
            return []
        self._extend_hashes(request)
        usable = (request.num_tokens - 1) // self.config.block_size
        return self.pool.find_prefix(request.block_hashes[:usable])

    def _may_use_cache(self, request: Request) -> bool:
        """Not if the logits of its whole prompt are wanted: they have to be computed."""
        return self.config.enable_prefix_caching and request.params.prompt_logprobs is None

    def _has_room_for(self, request: Request, cached: list[int]) -> bool:
        """Whether all of ``request`` fits now.

        It must leave each running one a block to grow into: who is admitted should not have to be
        preempted at once.
        """
        missing = self.config.blocks_for(request.num_tokens) - len(cached)
        taken_by_sharing = sum(self.pool.is_evictable(block) for block in cached)
        return missing + taken_by_sharing + len(self.running) <= self.pool.num_free

    def _admit(self, request: Request, cached: list[int]) -> None:
        num_cached = len(cached) * self.config.block_size
        self.pool.share(cached)
        request.block_table.extend(cached)
        request.num_computed_tokens = num_cached
        request.num_findable_blocks = len(cached)
        request.row = self._free_rows.pop()
        request.status = Status.RUNNING
        insort(self.running, request, key=self._key)
        if request.num_cached_tokens is None:
            request.num_cached_tokens = num_cached
            if self._may_use_cache(request):
                self.prefix_cache_stats.queries += request.num_tokens
                self.prefix_cache_stats.hits += num_cached

    # ---- blocks ---------------------------------------------------------------------------------

    def _schedule(
        self, plan: Plan, request: Request, num_new: int, cached: Sequence[int] = ()
    ) -> None:
        """Put ``num_new`` tokens of ``request`` into the plan, with the missing blocks for them."""
        start = request.num_computed_tokens
        missing = self._num_missing_blocks(request, num_new)
        new_blocks = self.pool.allocate(missing) if missing else ()
        request.block_table.extend(new_blocks)
        request.num_computed_tokens = start + num_new
        self._store_full_blocks(request)
        samples = request.num_uncomputed_tokens == 0
        request.num_pending_tokens += samples
        plan.scheduled.append(
            ScheduledRequest(request, start, num_new, samples, cached, new_blocks)
        )

    def _num_missing_blocks(self, request: Request, num_new: int) -> int:
        needed = self.config.blocks_for(request.num_computed_tokens + num_new)
        return needed - len(request.block_table)

    def _store_full_blocks(self, request: Request) -> None:
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

    def _release(self, request: Request) -> None:
        self.pool.release(request.block_table)
        del request.block_table[:]
        self._free_rows.append(request.row)

    # ---- the end of a request -------------------------------------------------------------------

    def _finish_if_done(self, request: Request, token_id: int) -> None:
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
            if requests != sorted(requests, key=self._key):
                raise InvariantError("the requests are out of order")
        if len(self.running) > self.config.max_num_seqs:
            raise InvariantError(f"{len(self.running)} requests run at once")
        for request in self.running:
            missing = self._num_missing_blocks(request, 0)
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
