from minimal_vllm import LLM, SamplingParams
from minimal_vllm.cli.summary import RunSummary
from minimal_vllm.trace.step_record import ScheduledRecord, StepRecord


def record(step, scheduled, *, finished=(), preempted=(), queries=0, hits=0):
    """A step that began ``step`` seconds after the start and took half a second."""
    return StepRecord(
        step=step,
        started=100.0 + step,
        schedule_seconds=0.1,
        run_seconds=0.3,
        update_seconds=0.1,
        scheduled=tuple(scheduled),
        admitted=(),
        preempted=tuple(preempted),
        finished=tuple((request_id, "length") for request_id in finished),
        evicted_blocks=(),
        num_running=0,
        num_waiting=0,
        num_blocks=1000,
        num_free_blocks=1000,
        num_cached_blocks=0,
        prefix_queries=queries,
        prefix_hits=hits,
    )


def did(request_id, *, cached=(), new=(), sampled=None, freed=0):
    tokens = () if sampled is None else (sampled,)
    return ScheduledRecord(
        request_id, 0, 1, tuple(cached), tuple(new), tokens, num_freed_blocks=freed
    )


def test_tokens_and_times_are_those_of_the_steps():
    summary = RunSummary()
    summary(record(0, [did("a", new=[1])]))  # a part of the prompt
    summary(record(1, [did("a", sampled=7)]))
    summary(record(2, [did("a", sampled=7), did("b", sampled=7)]))
    assert str(summary).startswith("3 tokens in 2.50 s (1 tokens/s, first after 1.50 s)")


def test_shared_blocks_count_once_and_those_of_a_request_s_last_step_count():
    summary = RunSummary()
    summary(record(0, [did("a", new=[1, 2], sampled=7)]))
    summary(record(1, [did("b", cached=[1], new=[3], sampled=7)], finished=["a"]))
    summary(record(2, [did("b", new=[2], sampled=7)], finished=["b"]))
    assert "KV cache: 3 of 1,000 blocks at most" in str(summary)


def test_a_preempted_request_holds_no_blocks():
    summary = RunSummary()
    summary(record(0, [did("a", new=[1, 2], sampled=7), did("b", new=[3], sampled=7)]))
    summary(record(1, [did("a", new=[3], sampled=7)], preempted=["b"]))
    assert "KV cache: 3 of" in str(summary)
    assert str(summary).endswith(", 1 preemption")


def test_after_a_reset_only_the_new_steps_count():
    summary = RunSummary()
    summary(record(0, [did("a", new=[1, 2], sampled=7)], queries=10, hits=0))
    summary.reset()
    assert str(summary) == "no tokens were generated"
    summary(record(5, [did("b", cached=[1], sampled=7)], queries=30, hits=15))
    assert str(summary) == (
        "1 token in 0.50 s (2 tokens/s, first after 0.50 s) · KV cache: 1 of 1,000 blocks at "
        "most, 75 % of the prompt from the prefix cache, 0 preemptions"
    )


def test_it_agrees_with_a_real_run(model):
    summary = RunSummary()
    llm = LLM(str(model), num_gpu_blocks_override=64, observers=[summary])
    params = SamplingParams(max_tokens=24, n=2, ignore_eos=True, seed=1)
    llm.generate({"prompt_token_ids": list(range(40))}, params, use_tqdm=False)
    # 2 full blocks of the prompt are shared; each has 31 tokens more (the last one isn't stored).
    assert "48 tokens in" in str(summary)
    assert "KV cache: 6 of 64 blocks at most, 40 % of the prompt" in str(summary)


def test_a_block_freed_with_its_rejected_guesses_is_not_counted_again():
    summary = RunSummary()
    summary(record(0, [did("a", new=[1, 2], sampled=7, freed=1)]))
    summary(record(1, [did("a", new=[3], sampled=7)]))
    assert "2 of 1,000 blocks at most" in str(summary)
