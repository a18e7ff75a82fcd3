from array import array
from itertools import count

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.alternating_scheduler import AlternatingScheduler
from minimal_vllm.engine.speculating_scheduler import SpeculatingScheduler
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.speculation.allowance import MEMORY, SHARE, Allowance
from minimal_vllm.speculation.interface import Placeholders
from minimal_vllm.speculation.pace import Costs
from minimal_vllm.step.request import FinishReason, Request


def test_a_loss_uses_it_up_until_enough_time_has_passed():
    allowance = Allowance()
    assert not allowance.is_used_up
    allowance.note(3.0, needed=2.0)
    steps = 0
    while allowance.is_used_up:
        allowance.note(1.0, needed=1.0)
        steps += 1
    # One second was lost, which is a share of SHARE when 1 / SHARE seconds have passed.
    assert 0.9 / SHARE < steps + 3 <= 1 / SHARE + 1
    assert MEMORY ** (1 / SHARE) > 0.9


def test_small_losses_are_allowed():
    allowance = Allowance()
    for _ in range(100):
        allowance.note(1 + SHARE / 2, needed=1.0)
    assert not allowance.is_used_up


def test_gains_are_no_credit_for_losses():
    allowance = Allowance()
    for _ in range(100):
        allowance.note(1.0, needed=4.0)
    allowance.note(5.0, needed=1.0)
    assert allowance.is_used_up


def test_none_are_begun_without_an_allowance_but_those_that_are_right_go_on():
    ticks = count()
    scheduler = SpeculatingScheduler(
        SchedulerConfig(max_model_len=256, max_num_batched_tokens=64, max_num_seqs=4),
        BlockPool(32, LRU()),
        Placeholders(),
        max_guesses=3,
        in_passes=True,
        clock=lambda: float(next(ticks)),
    )
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    scheduler.add(Request("a", array("i", [1, 2, 3]), 3, params, arrival=1))

    def step():
        plan = scheduler.schedule()
        (entry,) = plan.scheduled
        scheduler.update(plan, [[0] * entry.num_logits])  # all guesses are right
        scheduler.check()
        return len(entry.guesses)

    assert step() > 0
    scheduler.allowance.note(1000.0, needed=0.0)
    assert scheduler.allowance.is_used_up
    assert [step() > 0 for _ in range(3)] == [True] * 3
    scheduler._is_guessing = False
    assert [step() for _ in range(3)] == [0] * 3


class LateSteps:
    """A scheduler that runs ahead: what its steps lose, and what it learns from them."""

    def __init__(self, monkeypatch):
        self.now, self.num_wanted, self.losses, self.num_rows = 0.0, 2, [], []
        self.scheduler = scheduler = AlternatingScheduler(
            SchedulerConfig(max_model_len=256, max_num_batched_tokens=64, max_num_seqs=4),
            BlockPool(32, LRU()),
            Placeholders(),
            max_guesses=3,
            max_step_tokens=8,
            clock=lambda: self.now,
        )
        scheduler.meter.is_fitted, scheduler.meter.costs = True, Costs(1.0, 0.0)
        monkeypatch.setattr(scheduler, "count_guesses", lambda *_: [self.num_wanted])
        monkeypatch.setattr(
            scheduler.allowance, "note", lambda took, needed: self.losses.append(took - needed)
        )
        monkeypatch.setattr(scheduler.meter, "note", lambda rows, *_: self.num_rows.append(rows))

    def add(self, num_tokens):
        params = SamplingParams(max_tokens=100, ignore_eos=True)
        tokens = array("i", range(num_tokens))
        request = Request("", tokens, num_tokens, params, arrival=len(self.losses))
        self.scheduler.add(request)
        return request

    def step(self, seconds):
        """Compute a step; return whether the next one waits for its tokens."""
        plan = self.scheduler.schedule()
        waits = self.scheduler.needs_pending_tokens()
        self.now += seconds
        self.scheduler.update(plan, [[0]])
        return waits


def test_a_step_that_was_launched_late_because_of_guesses_counts_as_a_loss(monkeypatch):
    """It takes 3 seconds in place of 1, and teaches nothing about what rows cost."""
    steps = LateSteps(monkeypatch)
    steps.add(3)
    steps.step(1.0)  # the prompt
    assert steps.step(4.0), "with guesses, all wrong"
    steps.num_wanted = 0
    assert not steps.step(3.0)
    steps.step(1.0)
    assert steps.losses == [0.0, 3.0, 2.0, 0.0]
    assert steps.num_rows == [3, 3, 1]


def test_a_prompt_after_guesses_is_no_loss_however_long_it_takes(monkeypatch):
    """Its time is not that of a wait, and says what many rows cost."""
    steps = LateSteps(monkeypatch)
    first = steps.add(3)
    steps.step(1.0)
    assert steps.step(1.0), "with guesses"
    steps.scheduler.finish(first, FinishReason.ABORT)
    steps.add(60)
    steps.step(9.0)
    assert steps.losses == [0.0, 0.0, 0.0]
    assert steps.num_rows == [3, 3, 60]


def test_a_step_that_something_else_held_up_is_no_loss_and_tells_nothing():
    now = 0.0
    scheduler = SpeculatingScheduler(
        SchedulerConfig(max_model_len=256, max_num_batched_tokens=64, max_num_seqs=4),
        BlockPool(32, LRU()),
        Placeholders(),
        max_guesses=3,
        in_passes=True,
        clock=lambda: now,
    )
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    scheduler.add(Request("a", array("i", [1, 2, 3]), 3, params, arrival=1))
    for number in range(40):
        plan = scheduler.schedule()
        (entry,) = plan.scheduled
        now += 1000.0 if number == 30 else 1.0
        scheduler.update(plan, [[0] * entry.num_logits])  # all guesses are right
        if number == 30:
            assert entry.guesses
            assert not scheduler.allowance.is_used_up
    assert scheduler.meter.costs.of_step(4, 3) < 2
