"""Exact plans, spelled out. ``Traffic`` checks the invariants and the content behind each step."""

from array import array

import pytest

from minimal_vllm.cache.block_pool import BlockPool, InvariantError
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.request import FinishReason, Request, Status
from tests.engine.traffic import EOS, Traffic


def make_traffic(num_blocks=64, eviction="lru", **config):
    defaults = {
        "block_size": 4,
        "max_model_len": num_blocks * config.get("block_size", 4),
        "max_num_batched_tokens": 64,
        "max_num_seqs": 8,
    }
    return Traffic(num_blocks, eviction, **(defaults | config))


def add(traffic, name, length, first=0, max_tokens=100, **options):
    """A prompt of ``length`` tokens, unlike those with another ``first``; never ended by EOS."""
    prompt = [first, *(i % 5 for i in range(length - 1))]
    assert traffic.add(prompt, name, max_tokens=max_tokens, ignore_eos=True, **options)


def step(traffic):
    """How many tokens each request computes in the next step."""
    return {entry.request.request_id: entry.num_new for entry in traffic.step().scheduled}


def entries(traffic):
    return {entry.request.request_id: entry for entry in traffic.step().scheduled}


def table(traffic, name):
    return list(traffic.request(name).block_table)


# ---- blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt_length", "num_new_blocks"),
    [(1, [1, 0, 0, 0, 1]), (3, [1, 0, 1]), (4, [1, 1, 0]), (5, [2, 0, 0, 0, 1]), (8, [2, 1, 0])],
)
def test_a_block_is_taken_when_its_first_token_is_computed(prompt_length, num_new_blocks):
    traffic = make_traffic()
    add(traffic, "a", prompt_length)
    assert [len(entries(traffic)["a"].new_blocks) for _ in num_new_blocks] == num_new_blocks


@pytest.mark.parametrize(
    ("block_size", "length", "num_cached", "num_computed"),
    [(4, 8, 4, 4), (4, 9, 8, 1), (4, 7, 4, 3), (4, 4, 0, 4), (1, 5, 4, 1), (1, 1, 0, 1)],
)
def test_a_fully_cached_prompt_still_computes_its_last_token(
    block_size, length, num_cached, num_computed
):
    traffic = make_traffic(block_size=block_size)
    add(traffic, "a", length)
    traffic.run()
    add(traffic, "b", length)
    assert step(traffic) == {"b": num_computed}
    assert traffic.request("b").num_cached_tokens == num_cached
    stats = traffic.scheduler.prefix_cache_stats
    assert (stats.queries, stats.hits) == (2 * length, num_cached)


def test_generated_tokens_are_found_in_the_cache_like_prompts():
    traffic = make_traffic()
    add(traffic, "a", 6, max_tokens=7)
    traffic.run()
    turn = list(traffic.request("a").token_ids)
    traffic.add([*turn, 1, 2], "b")
    assert step(traffic) == {"b": len(turn) + 2 - 12}  # of 13 tokens the last was not computed


def test_equal_prompts_of_one_step_share_all_but_their_last_block():
    traffic = make_traffic()
    for name in "abc":
        add(traffic, name, 9)
    plan = entries(traffic)
    assert {name: entry.num_new for name, entry in plan.items()} == {"a": 9, "b": 1, "c": 1}
    assert plan["b"].cached_blocks == plan["c"].cached_blocks == plan["a"].new_blocks[:2]
    assert len({table(traffic, name)[2] for name in "abc"}) == 3
    traffic.run()


def test_of_a_chunk_of_the_same_step_only_full_blocks_are_shared():
    traffic = make_traffic(max_num_batched_tokens=12)
    add(traffic, "other", 2, first=4)
    add(traffic, "a", 20)
    add(traffic, "b", 20)
    assert step(traffic) == {"other": 2, "a": 10}
    assert step(traffic) == {"other": 1, "a": 10, "b": 1}
    assert traffic.request("b").num_cached_tokens == 16
    traffic.run()


def test_the_n_completions_of_a_prompt_share_its_blocks():
    traffic = make_traffic()
    add(traffic, "a", 9, n=3, max_tokens=4)
    assert step(traffic) == {"a#0": 9, "a#1": 1, "a#2": 1}
    assert 64 - traffic.pool.num_free == 2 + 3
    traffic.run()
    assert [each.finish_reason for each in traffic.ended["a"].outputs] == ["length"] * 3


def test_salts_share_nothing_but_with_themselves():
    traffic = make_traffic()
    for name, salt in (("a", None), ("b", "x"), ("c", "y"), ("d", "x"), ("e", None)):
        add(traffic, name, 9, salt=salt)
    assert step(traffic) == {"a": 9, "b": 9, "c": 9, "d": 1, "e": 1}


def test_without_prefix_caching_nothing_is_shared_or_cached():
    traffic = make_traffic(enable_prefix_caching=False)
    add(traffic, "a", 9)
    add(traffic, "b", 9)
    assert step(traffic) == {"a": 9, "b": 9}
    traffic.run()
    assert traffic.pool.num_cached == traffic.scheduler.prefix_cache_stats.queries == 0


def test_who_wants_its_prompts_logprobs_computes_all_of_it_and_leaves_it_cached():
    traffic = make_traffic()
    add(traffic, "a", 9)
    add(traffic, "b", 9, prompt_logprobs=0)
    add(traffic, "c", 9)
    assert step(traffic) == {"a": 9, "b": 9, "c": 1}
    assert table(traffic, "c")[:2] == table(traffic, "b")[:2]


@pytest.mark.parametrize(
    ("eviction", "evicted"),
    [("lru", [3, 2, 4, 1, 0]), ("lfu", [3, 2, 4, 1, 0]), ("fifo", [1, 0, 3, 2, 4])],
)
def test_blocks_are_evicted_in_their_strategys_order(eviction, evicted):
    traffic = make_traffic(6, eviction)
    add(traffic, "a", 8, max_tokens=1)  # blocks 0 1
    traffic.run()
    add(traffic, "b", 8, first=1, max_tokens=1)  # takes 2 3: released as 3, 2
    traffic.run()
    traffic.add([*traffic.request("a").token_ids[:8], 0, 0, 0, 0], "c", max_tokens=1)
    plan = entries(traffic)
    assert (plan["c"].cached_blocks, plan["c"].new_blocks) == ([0, 1], [4])
    assert traffic.pool.num_free == 6
    add(traffic, "d", 24 - 1, first=2)
    plan = traffic.step()
    assert plan.scheduled[0].new_blocks == [5, *evicted]  # 5 is free and unhashed
    assert plan.evicted == evicted


# ---- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_num_seqs", [1, 17])
def test_no_more_requests_run_than_the_limit_and_the_next_moves_up(max_num_seqs):
    traffic = make_traffic(max_num_seqs=max_num_seqs)
    for index in range(20):
        add(traffic, f"r{index}", 1, max_tokens=1 + index)
    names = [f"r{index}" for index in range(20)]
    assert list(step(traffic)) == names[:max_num_seqs]
    assert list(step(traffic)) == names[1 : max_num_seqs + 1]
    traffic.run()


def test_no_more_requests_are_admitted_in_a_step_than_the_limit():
    traffic = make_traffic(max_admitted=2)
    for name in "abc":
        add(traffic, name, 5, max_tokens=3)
    assert step(traffic) == {"a": 5, "b": 1}
    assert step(traffic) == {"a": 1, "b": 1, "c": 1}
    traffic.run()


def test_a_pool_too_small_for_the_longest_request_is_refused():
    with pytest.raises(ValueError, match=r"max_model_len=9 tokens needs 3 blocks .* pool has 2"):
        Scheduler(SchedulerConfig(max_model_len=9, block_size=4), BlockPool(2, LRU()))


@pytest.mark.parametrize(("length", "message"), [(0, "empty"), (8, "shorten"), (99, "shorten")])
def test_a_request_that_can_never_run_is_refused_and_leaves_no_trace(length, message):
    traffic = make_traffic(2)
    with pytest.raises(ValueError, match=message):
        traffic.engine.add_request("a", [0] * length, SamplingParams())
    assert not traffic.engine.has_unfinished_requests
    add(traffic, "a", 7)
    traffic.run()


def test_a_request_that_just_fits_uses_the_whole_pool():
    traffic = make_traffic(2)
    add(traffic, "a", 7)
    assert step(traffic) == {"a": 7}
    assert traffic.ended["a"].outputs[0].finish_reason == "length"
    add(traffic, "b", 1, first=3)
    traffic.run()
    assert len(traffic.ended["b"].outputs[0].token_ids) == 7


# ---- chunks -------------------------------------------------------------------------------------


def test_a_long_prompt_is_chunked_into_what_the_budget_leaves():
    traffic = make_traffic(max_num_batched_tokens=10)
    add(traffic, "a", 3)
    add(traffic, "long", 21, first=1)
    add(traffic, "late", 2, first=2)
    assert step(traffic) == {"a": 3, "long": 7}
    assert step(traffic) == {"a": 1, "long": 9}
    assert step(traffic) == {"a": 1, "long": 5, "late": 2}
    assert step(traffic) == {"a": 1, "long": 1, "late": 1}


@pytest.mark.parametrize(("left", "chunk"), [(3, {}), (4, {"long": 4})])
def test_a_64th_of_the_budget_is_the_smallest_first_chunk(left, chunk):
    traffic = make_traffic(256, max_num_batched_tokens=256)
    add(traffic, "a", 256 - left)
    add(traffic, "long", 40, first=1)
    assert step(traffic) == {"a": 256 - left} | chunk
    assert step(traffic) == {"a": 1, "long": 40 - sum(chunk.values())}


def test_what_ends_in_the_same_step_may_be_smaller_than_a_64th_of_the_budget():
    traffic = make_traffic(256, max_num_batched_tokens=256)
    add(traffic, "a", 253)
    add(traffic, "short", 3, first=1)
    assert step(traffic) == {"a": 253, "short": 3}


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_no_prompt_stalls_a_decode_whatever_its_rank(policy):
    traffic = make_traffic(max_num_batched_tokens=8, max_num_seqs=8, policy=policy)
    for index in range(4):
        add(traffic, f"decode{index}", 1, first=index, priority=1)
    step(traffic)
    add(traffic, "long", 30, first=4, priority=0)
    for chunk in (4, 4, 4, 4, 4, 4, 4, 2, 1):
        plan = step(traffic)
        assert plan.pop("long") == chunk
        assert plan == {f"decode{index}": 1 for index in range(4)}
    assert (next(iter(step(traffic))) == "long") is (policy == "priority")


def test_unchunked_prompts_wait_for_a_step_that_holds_them_and_are_not_overtaken():
    traffic = make_traffic(
        2, max_num_batched_tokens=8, max_num_seqs=4, enable_chunked_prefill=False
    )
    add(traffic, "a", 3, max_tokens=2)
    add(traffic, "b", 7, first=1, max_tokens=1)
    add(traffic, "c", 1, first=2)
    assert step(traffic) == {"a": 3}
    assert step(traffic) == {"a": 1}
    assert step(traffic) == {"b": 7}
    assert step(traffic) == {"c": 1}


# ---- admission and preemption -------------------------------------------------------------------


def test_no_request_is_admitted_that_would_leave_a_running_one_no_block_to_grow():
    traffic = make_traffic(4)
    add(traffic, "a", 4)
    add(traffic, "b", 8, first=1)
    add(traffic, "c", 1, first=2)
    assert step(traffic) == {"a": 4, "b": 8}
    assert step(traffic) == {"a": 1}  # "a" takes the fourth block; "b" would need a fifth


def test_sharing_cached_blocks_counts_as_using_up_free_ones():
    traffic = make_traffic(5)
    add(traffic, "old", 9, max_tokens=1)
    traffic.run()
    add(traffic, "a", 8, first=1)
    assert step(traffic) == {"a": 8}
    add(traffic, "old again", 9)
    # Of its 3 blocks it finds 2, but these are 2 of the 3 free ones, and "a" is owed the third.
    assert step(traffic) == {"a": 1}


def test_the_last_to_come_is_preempted_and_comes_back_first_finding_its_blocks():
    traffic = make_traffic(6)
    add(traffic, "a", 7)
    add(traffic, "b", 10, first=1)
    assert step(traffic) == {"a": 7, "b": 10}
    add(traffic, "c", 7, first=2)
    assert step(traffic) == {"a": 1, "b": 1}
    assert step(traffic) == {"a": 1, "b": 1}  # "a" has 3 blocks now, and so has "b"
    plan = traffic.step()
    assert [each.request_id for each in plan.preempted] == ["b"]
    assert [each.request.request_id for each in plan.scheduled] == ["a"]
    request = traffic.request("b")
    assert (request.status, request.num_preemptions) == (Status.WAITING, 1)
    assert (request.num_computed_tokens, table(traffic, "b")) == (0, [])
    traffic.abort("a")
    resumed = entries(traffic)["b"]
    assert (resumed.start, resumed.num_new, len(resumed.cached_blocks)) == (12, 1, 3)
    assert request.num_cached_tokens == 0  # what the user is told: of the prompt
    traffic.run()


def test_several_are_preempted_from_the_back_until_there_is_room():
    traffic = make_traffic(policy="priority", max_num_batched_tokens=12, max_num_seqs=4)
    for first, name in enumerate("abc"):
        add(traffic, name, 2, first=first)
    step(traffic)
    add(traffic, "urgent", 27, first=4, priority=-1)
    assert step(traffic) == {"a": 1, "b": 1, "c": 1, "urgent": 9}
    traffic.pool.allocate(traffic.pool.num_free)
    plan = traffic.scheduler.schedule()  # 9 tokens more need 2 blocks more
    assert [each.request_id for each in plan.preempted] == ["c", "b"]
    assert [(each.request.request_id, each.num_new) for each in plan.scheduled] == [
        ("urgent", 9),
        ("a", 1),
    ]


def test_a_request_that_finds_no_room_behind_others_gives_up_its_own_blocks():
    traffic = make_traffic()
    add(traffic, "a", 3)
    add(traffic, "b", 4, first=1)
    step(traffic)
    traffic.pool.allocate(traffic.pool.num_free)
    plan = traffic.scheduler.schedule()
    assert [each.request_id for each in plan.preempted] == ["b"]
    assert [each.request.request_id for each in plan.scheduled] == ["a"]


def test_priority_decides_who_is_served_first_and_who_is_preempted():
    traffic = make_traffic(policy="priority", max_num_seqs=2)
    for name, priority in (("low", 5), ("first", 0), ("second", 0), ("urgent", -1)):
        add(traffic, name, 2, first=len(name), priority=priority, max_tokens=2)
    assert [list(step(traffic)) for _ in range(4)] == [
        ["urgent", "first"],
        ["urgent", "first"],
        ["second", "low"],
        ["second", "low"],
    ]


def test_the_least_urgent_is_preempted_even_if_it_came_first():
    traffic = make_traffic(4, policy="priority")
    add(traffic, "low", 6, priority=1)
    step(traffic)
    add(traffic, "urgent", 3, first=1, priority=0)
    assert step(traffic) == {"low": 1, "urgent": 3}
    preempted = [[each.request_id for each in traffic.step().preempted] for _ in range(3)]
    assert preempted == [[], ["low"], []]
    assert [each.request_id for each in traffic.scheduler.running] == ["urgent"]
    traffic.run()


def test_a_priority_is_refused_without_the_priority_policy():
    traffic = make_traffic(max_num_seqs=1)
    with pytest.raises(ValueError, match="scheduling_policy='priority'"):
        traffic.engine.add_request("a", [1], SamplingParams(), priority=5)


# ---- ends ---------------------------------------------------------------------------------------


def waiting(traffic):
    for name in "abcdefgh":
        add(traffic, name, 1, first=ord(name) % 7)
    step(traffic)
    add(traffic, "victim", 5, first=9)
    step(traffic)
    assert traffic.request("victim").num_computed_tokens == 0


def computing_its_prompt(traffic):
    add(traffic, "victim", 100, first=9)
    step(traffic)
    assert traffic.request("victim").num_output_tokens == 0


def decoding(traffic):
    add(traffic, "victim", 5, first=9)
    step(traffic)
    step(traffic)
    assert traffic.request("victim").num_output_tokens == 2


def preempted(traffic):
    add(traffic, "big", 126)
    add(traffic, "huge", 100, first=5)
    add(traffic, "victim", 20, first=9)
    while not traffic.events["preempted"]:
        step(traffic)
    assert traffic.request("victim").status is Status.WAITING


def finished(traffic):
    add(traffic, "victim", 5, first=9, max_tokens=1)
    step(traffic)
    assert traffic.request("victim").finished


@pytest.mark.parametrize("state", [waiting, computing_its_prompt, decoding, preempted, finished])
def test_an_abort_is_safe_in_every_state(state):
    traffic = make_traffic()
    state(traffic)
    add(traffic, "bystander", 9, first=8, max_tokens=5)
    traffic.abort("victim")
    traffic.abort("victim")
    expected = "length" if state is finished else "abort"
    assert traffic.ended["victim"].outputs[0].finish_reason == expected
    assert "victim" not in step(traffic)
    traffic.run()
    assert traffic.ended["bystander"].outputs[0].finish_reason == "length"


def test_aborting_all_who_wait_leaves_nothing_to_do():
    traffic = make_traffic()
    for name in "abc":
        add(traffic, name, 3)
        traffic.abort(name)
    assert not traffic.engine.has_unfinished_requests
    add(traffic, "d", 3)
    assert step(traffic) == {"d": 3}


def finish_twice(traffic, first, second):
    add(traffic, "a", 3)
    request = traffic.request("a")
    traffic.scheduler.finish(request, first)
    traffic.scheduler.finish(request, second, "END")
    return request.finish_reason, request.stop_reason


def test_the_first_reason_to_end_holds():
    assert finish_twice(make_traffic(), FinishReason.ABORT, FinishReason.STOP) == ("abort", None)
    assert finish_twice(make_traffic(), FinishReason.LENGTH, FinishReason.ABORT)[0] == "length"


def test_a_stop_string_in_the_very_last_token_beats_the_length():
    assert finish_twice(make_traffic(), FinishReason.LENGTH, FinishReason.STOP) == ("stop", "END")


def test_what_a_failed_request_cached_is_not_found_again():
    traffic = make_traffic()
    add(traffic, "good", 9, first=1)
    add(traffic, "bad", 9)
    step(traffic)
    traffic.scheduler.fail(traffic.request("bad"), "NaN")
    add(traffic, "like bad", 9)
    add(traffic, "like good", 9, first=1)
    assert step(traffic) == {"good": 1, "like bad": 9, "like good": 1}


# ---- the proof ----------------------------------------------------------------------------------


def share_last_block(scheduler):
    one, other = (request.block_table for request in scheduler.running)
    scheduler.pool.release(other[1:])
    scheduler.pool.share(one[1:])
    other[1] = one[1]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda s: s.running.reverse(), "out of order"),
        (lambda s: s.running[1].block_table.pop(), "is 1, but 0 requests hold"),
        (lambda s: setattr(s.running[1], "num_computed_tokens", 99), "blocks, 23 too few"),
        (lambda s: setattr(s.running[1], "status", Status.WAITING), "is waiting and has"),
        (share_last_block, "partly filled block is shared"),
        (lambda s: s.running.extend([s.running[1]] * 8), "is 2, but"),
    ],
)
def test_check_finds_broken_books(break_it, message):
    traffic = make_traffic()
    add(traffic, "a", 5)
    add(traffic, "b", 5)
    step(traffic)
    traffic.scheduler.check()
    break_it(traffic.scheduler)
    with pytest.raises(InvariantError, match=message):
        traffic.scheduler.check()


# ---- several tokens in one step -----------------------------------------------------------------


def guessing(prompt_length, num_guesses, **params):
    """A scheduler with one request, and a plan of its tokens and of guesses behind them."""
    config = SchedulerConfig(
        block_size=4, max_model_len=32, max_num_batched_tokens=32, max_num_seqs=2
    )
    scheduler = Scheduler(config, BlockPool(8, LRU()))
    request = Request(
        "a",
        array("i", range(20, 20 + prompt_length)),
        prompt_length,
        SamplingParams(max_tokens=params.pop("max_tokens", 10)),
        arrival=1,
        eos_token_ids=frozenset({EOS}),
        **params,
    )
    scheduler.add(request)
    plan = scheduler.schedule()
    (entry,) = plan.scheduled
    blocks = scheduler.pool.allocate(scheduler.num_missing_blocks(request, num_guesses))
    request.block_table.extend(blocks)
    request.num_computed_tokens += num_guesses
    request.num_pending_tokens += num_guesses
    entry.num_new += num_guesses
    entry.num_logits += num_guesses
    return scheduler, request, plan


def output(request):
    return request.token_ids[request.num_prompt_tokens :].tolist()


def test_all_tokens_of_a_step_are_appended_if_all_guesses_are_right():
    scheduler, request, plan = guessing(3, num_guesses=1)
    scheduler.update(plan, [[5, 6]])
    scheduler.check()
    assert output(request) == [5, 6]
    assert (request.num_computed_tokens, request.num_pending_tokens) == (4, 0)
    assert request.num_findable_blocks == 1  # of the prompt and of the right guess
    assert [entry.num_new for entry in scheduler.schedule().scheduled] == [1]


def test_the_counter_moves_back_over_rejected_guesses_and_their_blocks_are_free_again():
    scheduler, request, plan = guessing(3, num_guesses=4)
    assert len(request.block_table) == 2
    scheduler.update(plan, [[5, 6]])
    scheduler.check()
    assert output(request) == [5, 6]
    assert (request.num_computed_tokens, request.num_pending_tokens) == (4, 0)
    assert (len(request.block_table), scheduler.pool.num_free) == (1, 7)


def test_a_block_that_holds_a_rejected_guess_can_not_be_found_in_the_prefix_cache():
    scheduler, request, plan = guessing(3, num_guesses=1)
    scheduler.update(plan, [[5]])  # the fourth slot holds the guess, which is another token
    scheduler.check()
    assert (request.num_tokens, request.num_computed_tokens) == (4, 3)
    assert (request.num_findable_blocks, scheduler.pool.num_cached) == (0, 0)


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "kept", "reason"),
    [
        ([EOS, 5], 10, [EOS], FinishReason.STOP),
        ([5, EOS], 10, [5, EOS], FinishReason.STOP),
        ([5, 6], 1, [5], FinishReason.LENGTH),
        ([5, EOS], 1, [5], FinishReason.LENGTH),
    ],
)
def test_tokens_behind_the_first_that_ends_a_request_are_ignored(tokens, max_tokens, kept, reason):
    scheduler, request, plan = guessing(3, num_guesses=1, max_tokens=max_tokens)
    scheduler.update(plan, [tokens])
    scheduler.check()
    assert (output(request), request.finish_reason) == (kept, reason)
    assert scheduler.pool.num_free == 8


class EndsAfter:
    """A grammar that is complete after some tokens."""

    error = ""

    def __init__(self, count):
        self._count = count

    def is_complete(self, row):
        return len(row.token_ids) - row.num_prompt_tokens >= self._count


def test_a_complete_grammar_ends_a_request_at_the_first_of_two_tokens():
    scheduler, request, plan = guessing(3, num_guesses=1, grammar=EndsAfter(1))
    scheduler.update(plan, [[5, 6]])
    assert (output(request), request.finish_reason) == ([5], FinishReason.STOP)


def test_a_request_preempted_meanwhile_takes_its_tokens_and_has_nothing_to_move_back():
    scheduler, request, plan = guessing(3, num_guesses=2)
    scheduler.running.remove(request)
    scheduler.preempt(request)
    scheduler.update(plan, [[5]])
    scheduler.check()
    assert (output(request), request.num_computed_tokens) == ([5], 0)
    assert (request.status, request.num_pending_tokens) == (Status.WAITING, 0)


def test_more_tokens_than_logits_are_an_error_that_says_so():
    scheduler, _, plan = guessing(3, num_guesses=0)
    with pytest.raises(ValueError, match="a got 1 tokens more than it has logits"):
        scheduler.update(plan, [[5, 6]])


def test_an_end_at_an_earlier_token_replaces_the_reason_of_a_later_one():
    scheduler, request, plan = guessing(3, num_guesses=1)
    scheduler.update(plan, [[5, EOS]])
    scheduler.finish(request, FinishReason.STOP, "five", num_tokens=4)
    assert (output(request), request.stop_reason) == ([5], "five")
    scheduler.finish(request, FinishReason.ABORT)
    assert request.finish_reason is FinishReason.STOP
