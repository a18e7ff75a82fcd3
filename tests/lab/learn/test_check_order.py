"""Each mistake in an order, and each way around the exercise, is found for its real reason."""

from functools import partial

import pytest

from minimal_vllm_lab.check import scheduler_rules
from minimal_vllm_lab.check.lesson import Broken
from minimal_vllm_lab.check.scheduler import check_scheduler
from minimal_vllm_lab.check.search import RAISES, REPEATABLE, History
from minimal_vllm_lab.learn import check_order as rules
from minimal_vllm_lab.learn import referee
from tests.lab.learn.mutants import module_with

KEY = "return request.arrival + request.num_prompt_tokens // 1000, request.arrival"
INIT = "super().__init__(config, pool)\n        self.key = order_key"
EXACTLY = "exactly first come, first served"
SLOWEST = "The prompts of the slowest 1 % have "
"""Begins a remark about who waits longest; the number of prompt tokens follows."""


@pytest.fixture(autouse=True)
def one_seed(monkeypatch):
    """Simulate once, instead of three times or six, and try few random histories before.

    The mistakes that break a scheduler are found in the first ones. ``test_exercises.py`` runs the
    whole check.
    """
    monkeypatch.setattr(rules, "KNOWN_SEEDS", range(1))
    monkeypatch.setattr(rules, "NUM_UNKNOWN", 1)
    monkeypatch.setattr(rules, "check_scheduler", partial(check_scheduler, examples=25))


# What ``order_key`` returns, the rule that it breaks, and what the lesson says.
WRONG_KEYS = [
    ("0, request.arrival", rules.FASTER, EXACTLY),
    ("request.priority, request.arrival", rules.FASTER, EXACTLY),
    ("request.num_prompt_tokens, request.arrival", rules.FASTER, "a million requests later"),
    ("request.max_num_tokens, request.arrival", rules.FASTER, f"{SLOWEST}18,"),
    ("-request.num_prompt_tokens, request.arrival", rules.FASTER, f"{SLOWEST}4"),
    ("0, -request.arrival", rules.FASTER, "the one that came later go first"),
    ("request.arrival + request.num_prompt_tokens, request.arrival", rules.FASTER, f"{SLOWEST}18,"),
    (
        "request.arrival - request.num_prompt_tokens // 1000, request.arrival",
        rules.FASTER,
        "a long prompt overtake a short",
    ),
    (
        "request.arrival + request.num_prompt_tokens // 10**5, request.arrival",
        rules.FASTER,
        EXACTLY,
    ),
    ("request.num_prompt_tokens > 1000, request.arrival", rules.FASTER, SLOWEST),
    ("request.arrival * request.num_prompt_tokens, request.arrival", rules.FASTER, SLOWEST),
    ("str(request.arrival), request.arrival", rules.FASTER, ""),
    ("request.arrival % 2, request.arrival", rules.FASTER, ""),
    ("request.arrival + request.num_prompt_tokens // 1000", rules.UNIQUE_KEYS, "arrivals "),
    ("request.num_prompt_tokens", rules.UNIQUE_KEYS, "arrivals 0 and 2"),
    ("request.num_prompt_tokens // 1000, 0", rules.UNIQUE_KEYS, "arrivals 0 and 2"),
    ("0", rules.UNIQUE_KEYS, "arrivals 0 and 1"),
    ("len(request.token_ids), request.arrival", rules.CONSTANT_KEYS, "(11, 0)"),
    ("request.num_tokens, request.arrival", rules.CONSTANT_KEYS, "(11, 0)"),
    ("request.num_uncomputed_tokens, request.arrival", rules.CONSTANT_KEYS, "(1, 0)"),
    ("-request.num_computed_tokens, request.arrival", rules.CONSTANT_KEYS, "(-10, 0)"),
    ("request.status.value, request.arrival", rules.CONSTANT_KEYS, "running"),
    ("__import__('time').monotonic(), request.arrival", rules.CONSTANT_KEYS, ""),
    ("__import__('random').random(), request.arrival", rules.CONSTANT_KEYS, ""),
    ("seen.append(request) or -len(seen), request.arrival", rules.CONSTANT_KEYS, "(-5, 0)"),
    ("None", rules.UNIQUE_KEYS, "None"),
    ("1 / (request.arrival - 2), request.arrival", RAISES, "ZeroDivisionError"),
    ("request.arrived, request.arrival", RAISES, "no attribute 'arrived'"),
    ("request.arrival or None, request.arrival", RAISES, "'<' not supported"),
]


@pytest.mark.breaks("beat-fcfs")
@pytest.mark.parametrize(("key", "rule", "named"), WRONG_KEYS)
def test_a_wrong_key_is_found(key, rule, named):
    module = module_with("beat-fcfs", (KEY, f"return ({key})"))
    module.seen = []
    lesson = rules.check_order(module)
    assert lesson.rule is rule, "\n".join(lesson.lines())
    assert named in lesson.found, lesson.found


# What ``MyScheduler`` has beside its key, the rule that it breaks, and what the lesson says. Most
# do it only to long prompts, which the small requests of the scheduler's own check are not.
WRONG_METHODS = {
    "the key is not used": (
        "",
        (INIT, INIT.replace("self.key", "self._key")),
        rules.FASTER,
        EXACTLY,
    ),
    "the key is replaced": (
        "",
        (INIT, "self.key = order_key\n        super().__init__(config, pool)"),
        rules.FASTER,
        EXACTLY,
    ),
    "the parent is not set up": ("", (INIT, "self.key = order_key"), RAISES, "AttributeError"),
    "an idle engine is waited for": (
        """
    def admit_waiting(self, plan, budget):
        if not self.running:
            super().admit_waiting(plan, budget)
""",
        (),
        referee.ALL_FINISH,
        "",
    ),
    "long prompts are refused": (
        """
    def add(self, request):
        if request.num_tokens > 9000:
            raise ValueError("too long")
        super().add(request)
""",
        (),
        referee.ALL_FINISH,
        "requests got no token",
    ),
    "long prompts are dropped": (
        """
    def add(self, request):
        if request.num_tokens < 9000:
            super().add(request)
""",
        (),
        referee.ALL_FINISH,
        "requests got no token",
    ),
    "long prompts end in an error": (
        """
    def add(self, request):
        super().add(request)
        if request.num_tokens > 9000:
            self.fail(request, "too long")
""",
        (),
        referee.ALL_FINISH,
        "requests got no token",
    ),
    "long prompts are cut": (
        """
    def add(self, request):
        del request.token_ids[9000:]
        super().add(request)
""",
        (),
        referee.WHOLE,
        "prompt tokens, computes 9,0",
    ),
    "long prompts are half computed": (
        """
    def admit(self, request, cached):
        super().admit(request, cached)
        if request.num_tokens > 9000:
            request.num_computed_tokens = request.num_tokens // 2
            self.blocks.append(request, self.num_missing_blocks(request, 0))
""",
        (),
        referee.WHOLE,
        "prompt tokens, computes",
    ),
    "answers to long prompts are cut": (
        """
    def add(self, request):
        super().add(request)
        if request.num_tokens > 9000:
            request.max_num_tokens = request.num_tokens + 1
""",
        (),
        referee.WHOLE,
        "prompt tokens, gets 1 tokens",
    ),
    "the clock starts late": (
        """
    def admit(self, request, cached):
        super().admit(request, cached)
        if hasattr(request, "arrived"):
            request.arrived += 1.0
""",
        (KEY, "return 0, request.arrival"),
        rules.FASTER,
        EXACTLY,
    ),
    "long prompts wait for ever": (
        """
    def admit_waiting(self, plan, budget):
        long = [each for each in self.waiting if each.num_tokens > 9000]
        self.waiting = [each for each in self.waiting if each not in long]
        super().admit_waiting(plan, budget)
        self.waiting += long
""",
        (),
        scheduler_rules.PROGRESS,
        "requests run, ",
    ),
    "a larger budget for long prompts": (
        """
    def admit_waiting(self, plan, budget):
        is_long = any(each.num_tokens > 9000 for each in self.waiting)
        super().admit_waiting(plan, budget + 4000 * is_long)
""",
        (),
        scheduler_rules.BUDGET,
        "6048 tokens",
    ),
    "a larger budget": (
        "",
        (INIT, INIT.replace("config, pool", "replace(config, max_num_batched_tokens=9999), pool")),
        scheduler_rules.BUDGET,
        "",
    ),
    "more requests at once": (
        """
    def __init__(self, config, pool):
        most = config.max_num_batched_tokens
        super().__init__(replace(config, max_num_seqs=most), pool)
        self.key = order_key
""",
        (),
        scheduler_rules.MAX_SEQS,
        "running requests",
    ),
    "running requests make room for shorter ones": (
        """
    def schedule(self):
        victims = []
        if self.running and self.waiting and self.key(self.waiting[0]) < self.key(self.running[-1]):
            victims = [self.running.pop()]
            self.preempt(victims[0])
        plan = super().schedule()
        plan.preempted += victims
        return plan
""",
        (),
        scheduler_rules.NO_SWAP,
        "preempted",
    ),
    "decodes wait for prompts": (
        """
    def schedule_running(self, plan, budget):
        if any(each.num_tokens < 1000 for each in self.waiting):
            return budget
        return super().schedule_running(plan, budget)
""",
        (),
        scheduler_rules.NO_STALL,
        "computes nothing",
    ),
    "added at the end": (
        """
    def enqueue(self, request):
        self.waiting.append(request)
""",
        (),
        scheduler_rules.LISTED,
        "",
    ),
    "sorted after a copy": (
        """
    def schedule(self):
        queue, self.waiting = self.waiting, sorted(self.waiting, key=order_key)[:1]
        return super().schedule()
""",
        (),
        scheduler_rules.LISTED,
        "",
    ),
    "one queue for all schedulers": (
        "",
        (INIT, INIT + "\n        self.waiting = calls"),
        scheduler_rules.SEPARATE,
        "",
    ),
    "every fiftieth step of all schedulers admits nobody": (
        """
    def admit_waiting(self, plan, budget):
        calls.append(plan)
        if len(calls) % 50:
            super().admit_waiting(plan, budget)
""",
        (),
        REPEATABLE,
        "",
    ),
}


@pytest.mark.breaks("beat-fcfs")
@pytest.mark.parametrize("name", WRONG_METHODS)
def test_a_wrong_scheduler_is_found(name):
    methods, changed, rule, named = WRONG_METHODS[name]
    head = "from dataclasses import replace\n\ncalls = []\n\n\ndef order_key"
    replaced = [("def order_key", head), *([changed] if changed else [])]
    text = changed[1] if changed and changed[0] == INIT else INIT
    lesson = rules.check_order(module_with("beat-fcfs", *replaced, (text, f"{text}\n{methods}")))
    assert lesson is not None
    assert lesson.rule is rule, "\n".join(lesson.lines())
    assert named in lesson.found, lesson.found


def test_a_scheduler_that_takes_too_many_steps_is_stopped():
    with pytest.raises(Broken) as caught:
        rules._simulate(None, 0, max_steps=50)
    assert caught.value.rule is referee.ALL_FINISH
    assert "of 600 requests have their first token after 50 steps" in caught.value.found


def test_what_the_referee_measures_is_what_the_simulator_reports():
    run = rules._simulate(None, 0)
    assert len(run.waits) == 600
    assert rules._tail(run) == pytest.approx(2410, abs=1)


def test_a_prompt_that_is_too_long_for_the_engine_is_not_the_scheduler_s_fault():
    run = rules._simulate(None, 8)
    assert len(run.fitting) < len(run.jobs)


def test_an_order_for_the_known_traffic_alone_fails_with_another_seed():
    known = "(request.arrival, request.num_prompt_tokens) in known"
    module = module_with(
        "beat-fcfs",
        (KEY, f"{KEY}, 0) if {known} else (-request.arrival, 0)".replace("return ", "return (")),
    )
    module.known = {
        (arrival, len(job.prompt))
        for seed in rules.KNOWN_SEEDS
        for arrival, job in enumerate(rules._simulate(None, seed).jobs, 1)
    }
    assert rules.race(module, History()).gain > rules.MIN_GAIN
    lesson = rules.check_order(module, seed=7)
    assert lesson.rule is rules.STILL_FASTER
