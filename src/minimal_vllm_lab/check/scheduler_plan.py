"""Check one plan of a scheduler against the rules for plans."""

from collections import Counter
from collections.abc import Sequence

from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import Request, Status
from minimal_vllm_lab.check.lesson import Broken
from minimal_vllm_lab.check.scheduler_rules import (
    ADVANCES,
    AHEAD,
    BUDGET,
    FROM_THE_BACK,
    LOGPROBS,
    MAX_SEQS,
    NO_STALL,
    NO_SWAP,
    ONLY_IF_NEEDED,
    PREEMPTED_WAITS,
    PROGRESS,
    SAMPLES,
    WHOLE_PROMPT,
)


class StateBefore:
    """The state of a scheduler before it plans a step.

    Attributes:
        running: the running requests, in order of service.
        pending: number of tokens that the steps in flight will append to each request.
        num_free: number of free blocks.
        num_missing: number of blocks that all running requests together lack for their tokens.
    """

    def __init__(self, scheduler: Scheduler, pending: Counter[Request]) -> None:
        self.running = list(scheduler.running)
        self.pending = pending
        self.num_free = scheduler.pool.num_free
        self.num_missing = sum(
            scheduler.config.blocks_for(self.num_tokens(request)) - len(request.block_table)
            for request in self.running
            if not self.awaits_its_end(request)
        )

    def num_tokens(self, request: Request) -> int:
        """Return the number of tokens of a request, pending ones included."""
        return request.num_tokens + self.pending[request]

    def awaits_its_end(self, request: Request) -> bool:
        """Return whether a pending token will bring a request to its maximum length."""
        return self.num_tokens(request) >= request.max_num_tokens


def check_plan(
    plan: Plan,
    before: StateBefore,
    config: SchedulerConfig,
    scheduler: Scheduler,
    requests: Sequence[Request],
) -> None:
    """Check a plan that ``scheduler`` has just made.

    Args:
        plan: the plan.
        before: the state of the scheduler before it made the plan.
        config: the limits that it was made with, whatever it has made of them.
        scheduler: the scheduler, after it made the plan.
        requests: all requests that were ever added, finished ones included.

    Raises:
        Broken: the plan breaks a rule.
    """
    num_tokens = sum(entry.num_new for entry in plan.scheduled)
    if num_tokens > config.max_num_batched_tokens:
        raise Broken(BUDGET, f"{num_tokens} tokens", f"at most {config.max_num_batched_tokens}")
    num_running = len(scheduler.running)
    if max(len(plan.scheduled), num_running) > config.max_num_seqs:
        raise Broken(MAX_SEQS, f"{num_running} running requests", f"at most {config.max_num_seqs}")
    _check_preemptions(plan, before)
    if not (plan.scheduled or before.pending):
        unfinished = [request.request_id for request in requests if not request.finished]
        raise Broken(
            PROGRESS,
            f"the plan is empty, although {', '.join(unfinished)} did not finish; "
            f"free blocks: {scheduler.pool.num_free}",
        )
    _check_entries(plan, before, config.enable_chunked_prefill)
    scheduled = {entry.request for entry in plan.scheduled}
    for request in before.running:
        served = request in scheduled or request in plan.preempted
        if not served and not before.awaits_its_end(request):
            raise Broken(NO_STALL, f"{request.request_id} computes nothing")


def _check_entries(plan: Plan, before: StateBefore, may_chunk: bool) -> None:
    for entry in plan.scheduled:
        request, end = entry.request, entry.start + entry.num_new
        name = request.request_id
        if entry.num_new < 1:
            rule = NO_STALL if request in before.running else ADVANCES
            raise Broken(rule, f"{name} computes {entry.num_new} tokens", "at least 1")
        if request.num_computed_tokens != end:
            raise Broken(
                ADVANCES,
                f"{name}'s num_computed_tokens is {request.num_computed_tokens}",
                f"{end}: {entry.start}, plus {entry.num_new} in this step",
            )
        if entry.cached_blocks and request.params.prompt_logprobs is not None:
            found = f"{name} begins with the cached blocks {entry.cached_blocks}"
            raise Broken(LOGPROBS, found, "none")
        _check_length(entry, before)
        num_tokens = before.num_tokens(request)
        num_logits = 1 if end == num_tokens else 0
        if entry.num_logits != num_logits:
            raise Broken(
                SAMPLES,
                f"num_logits is {entry.num_logits} for {name}",
                f"{num_logits}: {end} of {num_tokens} tokens are computed",
            )
        if not (entry.num_logits or may_chunk):
            raise Broken(WHOLE_PROMPT, f"{name} computes {end} of {num_tokens} tokens")


def _check_length(entry: ScheduledRequest, before: StateBefore) -> None:
    """Check that a request computes only tokens that it has or will get from steps in flight."""
    request, end = entry.request, entry.start + entry.num_new
    name, num_tokens = request.request_id, before.num_tokens(entry.request)
    if end > num_tokens:
        found = f"{name} computes {end} tokens"
        raise Broken(ADVANCES, found, f"at most {num_tokens}: it has no more")
    if before.awaits_its_end(request):
        raise Broken(
            AHEAD,
            f"{name} computes token {end - 1}",
            f"nothing: the token that is pending is its last, the {request.max_num_tokens}th",
        )
    num_pending = before.pending[request] + entry.num_logits
    if request.num_pending_tokens != num_pending:
        raise Broken(
            AHEAD,
            f"num_pending_tokens of {name} is {request.num_pending_tokens} after the plan",
            f"{num_pending}: one for each step that will append a token, this one included",
        )


def _check_preemptions(plan: Plan, before: StateBefore) -> None:
    if not plan.preempted:
        return
    names = [request.request_id for request in plan.preempted]
    if before.num_missing <= before.num_free:
        raise Broken(
            ONLY_IF_NEEDED,
            f"{', '.join(names)} preempted",
            f"no preemption: {before.num_missing} more blocks were needed, and "
            f"{before.num_free} were free",
        )
    expected = before.running[::-1][: len(names)]
    if plan.preempted != expected:
        raise Broken(FROM_THE_BACK, f"{names}", f"{[each.request_id for each in expected]}")
    if plan.admitted:
        raise Broken(NO_SWAP, f"{plan.admitted[0].request_id} is admitted, {names[0]} preempted")
    for request in plan.preempted:
        state = (request.status, request.num_computed_tokens, len(request.block_table))
        if state != (Status.WAITING, 0, 0):
            raise Broken(
                PREEMPTED_WAITS,
                f"{request.request_id} is {request.status.value}, with "
                f"{request.num_computed_tokens} computed tokens and {len(request.block_table)} "
                f"blocks",
                "waiting, 0 and 0",
            )


def describe_plan(plan: Plan) -> str:
    """Return a plan as one line: the tokens per request, the admitted and the preempted requests.

    For example ``A tokens 0-3; B token 7; admitted A``.
    """
    entries = []
    for entry in plan.scheduled:
        last = entry.start + entry.num_new - 1
        tokens = f"token {last}" if entry.num_new == 1 else f"tokens {entry.start}-{last}"
        tokens = tokens if entry.num_new > 0 else "no token"
        entries.append(f"{entry.request.request_id} {tokens}")
    for name, requests in (("admitted", plan.admitted), ("preempted", plan.preempted)):
        if requests:
            entries.append(f"{name} {' '.join(request.request_id for request in requests)}")
    return "; ".join(entries) or "nothing"
