from dataclasses import replace

import pytest

from minimal_vllm.engine.block_manager import BlockManager
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.step.request import FinishReason, Status
from minimal_vllm_lab.ablate.policies import Reservation, StaticBatching
from minimal_vllm_lab.check import fake_model
from minimal_vllm_lab.check import scheduler_rules as rules
from minimal_vllm_lab.check.scheduler import check_scheduler


class ForgetsTheBudget(Scheduler):
    def schedule_running(self, plan, budget):
        super().schedule_running(plan, budget)
        return budget


class StallsDecodes(Scheduler):
    """Give the first request as many tokens as the budget allows."""

    def schedule_running(self, plan, budget):
        for request in self.running:
            num_new = min(request.num_uncomputed_tokens, budget)
            missing = self.num_missing_blocks(request, num_new)
            if not num_new or (missing and not self.make_room(request, missing, plan)):
                break
            self.schedule_tokens(plan, request, num_new)
            budget -= num_new
        return budget


class PreemptsFromTheFront(Scheduler):
    def make_room(self, request, missing, plan):
        while missing > self.pool.num_free:
            victim = self.running.pop(0)
            self.preempt(victim)
            plan.preempted.append(victim)
            if victim is request:
                return False
        return True


class ForgetsTheCounter(Scheduler):
    def preempt(self, request):
        counter = request.num_computed_tokens
        super().preempt(request)
        request.num_computed_tokens = counter


class LosesThePreempted(Scheduler):
    def preempt(self, request):
        self.release(request)
        request.num_computed_tokens = 0
        request.status = Status.WAITING


class CountsBlocksByFloor(Scheduler):
    def num_missing_blocks(self, request, num_new):
        end = request.num_computed_tokens + num_new
        return end // self.config.block_size + 1 - len(request.block_table)


class KeepsItsBlocks(Scheduler):
    def release(self, request):
        request.block_table = request.block_table[:0]
        self._free_rows.append(request.row)


class SharesTheWholePrompt(Scheduler):
    def find_cached_prefix(self, request):
        if not self.may_use_cache(request):
            return []
        self.blocks.find_cached_prefix(request)  # extends the hashes
        return self.pool.find_prefix(request.block_hashes)


class HashesIndices(BlockManager):
    """Give all blocks at the same index of a block table the same hash."""

    def _extend_hashes(self, request):
        num_full = request.num_tokens // self.config.block_size
        request.block_hashes[:] = [bytes([index]) for index in range(num_full)]


class IgnoresTheSalt(Scheduler):
    def __init__(self, config, pool):
        super().__init__(config, pool)
        self.blocks = HashesIndices(config, pool)


class TellsTheNumberOfCachedTokens(Scheduler):
    def schedule_tokens(self, plan, request, num_new, cached=()):
        super().schedule_tokens(plan, request, num_new, len(cached) * self.config.block_size)


class ForgetsTheCachedBlocks(Scheduler):
    def schedule_tokens(self, plan, request, num_new, cached=()):
        super().schedule_tokens(plan, request, num_new)


class ForgetsTheAdmitted(Scheduler):
    def admit_waiting(self, plan, budget):
        super().admit_waiting(plan, budget)
        plan.admitted.clear()


class ForgetsThePreempted(Scheduler):
    def schedule_running(self, plan, budget):
        budget = super().schedule_running(plan, budget)
        if plan.preempted:
            plan.preempted.clear()
            return 0
        return budget


class ForgetsTheEvicted(Scheduler):
    def schedule(self):
        plan = super().schedule()
        plan.evicted = []
        return plan


class AdmitsTwice(Scheduler):
    def admit(self, request, cached):
        super().admit(request, cached)
        self.waiting.append(request)


class ForgetsPendingTokens(Scheduler):
    def schedule_tokens(self, plan, request, num_new, cached=()):
        pending = request.num_pending_tokens
        super().schedule_tokens(plan, request, num_new, cached)
        request.num_pending_tokens = pending

    def update(self, plan, sampled):
        for request in plan.sampling:
            request.num_pending_tokens += 1
        super().update(plan, sampled)


class ComputesTheLastToken(Scheduler):
    """Go on with a request whose last token is pending."""

    def schedule_running(self, plan, budget):
        for position, request in enumerate(list(self.running)):
            num_after = len(self.running) - position - 1
            num_new = min(request.num_uncomputed_tokens, budget - num_after)
            missing = self.num_missing_blocks(request, num_new)
            if missing and not self.make_room(request, missing, plan):
                break
            self.schedule_tokens(plan, request, num_new)
            budget -= num_new
        return budget


class NeverWaitsForTokens(Scheduler):
    def needs_pending_tokens(self):
        return False


class CachesDespiteLogprobs(Scheduler):
    def may_use_cache(self, request):
        return self.config.enable_prefix_caching


class CountsEachAdmission(Scheduler):
    def preempt(self, request):
        super().preempt(request)
        request.num_cached_tokens = None


class CountsNoHits(Scheduler):
    def admit(self, request, cached):
        super().admit(request, cached)
        self.prefix_cache_stats.hits = 0


class ForgetsTheGrammar(Scheduler):
    def finish_if_done(self, request, token_id):
        grammar, request.grammar = request.grammar, None
        is_done = super().finish_if_done(request, token_id)
        request.grammar = grammar
        return is_done


class ForgetsStopTokens(Scheduler):
    def finish_if_done(self, request, token_id):
        if token_id not in request.eos_token_ids:
            request = replace_stop_tokens(request)
        return super().finish_if_done(request, token_id)


def replace_stop_tokens(request):
    request.stop_token_ids = request.eos_token_ids
    return request


class ForgetsMinTokens(Scheduler):
    def finish_if_done(self, request, token_id):
        if token_id in request.stop_token_ids:
            self.finish(request, FinishReason.STOP)
            return True
        return super().finish_if_done(request, token_id)


class SharesItsRunningList(Scheduler):
    everyone = []  # noqa: RUF012 - the mistake that this class makes

    def __init__(self, config, pool):
        super().__init__(config, pool)
        self.running = self.everyone


class ForgetsToReset(Scheduler):
    def reset(self):
        self.pool = self.pool.emptied()


class KeepsItsRow(Scheduler):
    def admit(self, request, cached):
        super().admit(request, cached)
        self._free_rows.append(request.row)
        request.row = 0


class KeepsFailedBlocks(Scheduler):
    def fail(self, request, error):
        self.finish(request, FinishReason.ERROR, stop_reason=error)


class RaisesItsLimits(Scheduler):
    """Believe its own configuration: a larger one, with rows to match."""

    def __init__(self, config, pool):
        super().__init__(replace(config, max_num_seqs=config.max_num_batched_tokens), pool)


class RaisesItsBudget(Scheduler):
    def __init__(self, config, pool):
        super().__init__(replace(config, max_num_batched_tokens=100), pool)


MUTANTS = {
    ForgetsTheBudget: rules.BUDGET,
    StallsDecodes: rules.NO_STALL,
    PreemptsFromTheFront: rules.FROM_THE_BACK,
    ForgetsTheCounter: rules.PREEMPTED_WAITS,
    LosesThePreempted: rules.LISTED,
    CountsBlocksByFloor: fake_model.HAS_BLOCKS,
    KeepsItsBlocks: rules.BLOCK_OWNERS,
    SharesTheWholePrompt: rules.ADVANCES,
    IgnoresTheSalt: fake_model.READS_OWN_TOKENS,
    TellsTheNumberOfCachedTokens: rules.TOLD,
    ForgetsTheCachedBlocks: rules.TOLD,
    ForgetsTheAdmitted: rules.TOLD,
    ForgetsThePreempted: rules.NO_STALL,
    ForgetsTheEvicted: rules.TOLD,
    AdmitsTwice: rules.LISTED,
    ForgetsPendingTokens: rules.AHEAD,
    ComputesTheLastToken: rules.AHEAD,
    NeverWaitsForTokens: rules.AHEAD,
    CachesDespiteLogprobs: rules.LOGPROBS,
    CountsEachAdmission: rules.COUNTED,
    CountsNoHits: rules.COUNTED,
    ForgetsTheGrammar: rules.ALL_FINISH,
    ForgetsStopTokens: rules.ALL_FINISH,
    ForgetsMinTokens: rules.ALL_FINISH,
    SharesItsRunningList: rules.SEPARATE,
    ForgetsToReset: rules.RESET,
    KeepsItsRow: rules.ROWS,
    KeepsFailedBlocks: rules.TOLD,
    RaisesItsLimits: rules.MAX_SEQS,
    RaisesItsBudget: rules.BUDGET,
}


@pytest.mark.parametrize("scheduler", [Scheduler, StaticBatching, Reservation])
def test_correct_schedulers_pass(scheduler):
    assert check_scheduler(scheduler, examples=200) is None


@pytest.mark.breaks("check scheduler")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mistake_is_found_and_named(mutant):
    lesson = check_scheduler(mutant)
    assert lesson is not None
    assert lesson.rule is MUTANTS[mutant], "\n".join(lesson.lines())


EXPECTED = {rule: {rule, rules.SAME_PLAN} for rule in MUTANTS.values()}
"""Rules that a lesson may be about, if plans are compared with those of the engine's scheduler."""


@pytest.mark.breaks("chunked-prefill", "preemption")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mistake_is_found_where_plans_must_be_the_same(mutant):
    lesson = check_scheduler(mutant, like=Scheduler)
    assert lesson is not None
    assert lesson.rule in EXPECTED[MUTANTS[mutant]], "\n".join(lesson.lines())


WITHOUT_CHUNKS = {each: EXPECTED[rule] for each, rule in MUTANTS.items()}
WITHOUT_CHUNKS[StallsDecodes] = {rules.AHEAD}
for each in (ForgetsTheBudget, RaisesItsBudget):  # the budget holds all prompts
    del WITHOUT_CHUNKS[each]


@pytest.mark.breaks("continuous-batching")
@pytest.mark.parametrize("mutant", WITHOUT_CHUNKS)
def test_a_mistake_is_found_without_chunks(mutant):
    lesson = check_scheduler(mutant, like=Scheduler, chunked=False)
    assert lesson is not None
    assert lesson.rule in WITHOUT_CHUNKS[mutant], "\n".join(lesson.lines())


def test_a_safe_scheduler_with_other_plans_breaks_only_the_rule_about_plans():
    lesson = check_scheduler(StaticBatching, like=Scheduler)
    assert lesson.rule is rules.SAME_PLAN
    assert "admitted" in lesson.expected
    assert "admitted" not in lesson.found
