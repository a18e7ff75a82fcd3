"""Whatever users send, the engine lives on and everyone else gets what they would have got."""

import logging

import pytest
import torch

from minimal_vllm import LLM, SamplingParams

GOOD_PROMPT = [5, 9, 200, 31, 7, 90] * 5
GOOD = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
BAD_PROMPT = [77, 66, 55, 44] * 10


def make_llm(folder, **options):
    return LLM(str(folder), **{"num_gpu_blocks_override": 16, **options})


@pytest.fixture(scope="module")
def llm(checkpoint):
    return make_llm(checkpoint("llama"))


@pytest.fixture(scope="module")
def good_tokens(checkpoint):
    output = make_llm(checkpoint("llama")).generate([GOOD_PROMPT], GOOD, use_tqdm=False)
    return output[0].outputs[0].token_ids


def check_unharmed(llm, good_tokens):
    assert not llm.engine.has_unfinished_requests
    output = llm.generate([GOOD_PROMPT], GOOD, use_tqdm=False)[0]
    assert output.outputs[0].token_ids == good_tokens
    llm.engine.scheduler.check()
    assert llm.engine.scheduler.pool.num_free == 16


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ("", "the prompt is empty"),
        ([1] * 256, "the prompt has 256 tokens, but max_model_len is 256"),
        ([1] * 100_000, "shorten the prompt"),
        ([-1], "prompt_token_ids has -1"),
        (
            [1, 288],
            "prompt_token_ids has 288, but the model's tokens are the integers from 0 to 287: "
            "it is out of vocabulary, whose size is 288",
        ),
        ([2**40], "prompt_token_ids can't be used"),
        ([1, "a"], "prompt_token_ids can't be used"),
        ([1, 2.0], "prompt_token_ids can't be used"),
        ({"prompt_token_ids": [1, None]}, "prompt_token_ids can't be used"),
        ({"prompt_token_ids": None}, "should have 'prompt' or 'prompt_token_ids'"),
        ({"prompt": 5}, "a prompt's text is 5"),
        ({}, "should have 'prompt' or 'prompt_token_ids'"),
        ({"prompt": "a", "multi_modal_data": 1}, "multi_modal_data"),
        (None, "a prompt is None, but should be a text, token ids"),
        (5, "a prompt is 5, but"),
        (b"a", "a prompt is b'a', but"),
        ({"prompt": "a", "cache_salt": ""}, "cache_salt must be a text that isn't empty"),
    ],
)
def test_a_bad_prompt_is_refused_and_no_other_of_its_call_runs(llm, good_tokens, prompt, message):
    with pytest.raises(ValueError, match=message):
        llm.generate([GOOD_PROMPT, prompt], GOOD, use_tqdm=False)
    check_unharmed(llm, good_tokens)


@pytest.mark.parametrize("prompt", [None, 5, b"a"])
def test_a_lone_prompt_that_is_neither_text_nor_tokens_is_refused(llm, prompt):
    with pytest.raises(ValueError, match="but should be a text, token ids, or a mapping"):
        llm.generate(prompt, GOOD, use_tqdm=False)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"logprobs": 21}, "logprobs asks for 21, but max_logprobs is 20"),
        ({"logprobs": -1}, "logprobs asks for the whole vocabulary"),
        ({"prompt_logprobs": 21}, "prompt_logprobs asks for 21"),
        ({"stop_token_ids": [288]}, "stop_token_ids has 288"),
        ({"allowed_token_ids": [1, 1000]}, "allowed_token_ids has 1000"),
        ({"logit_bias": {999: 1.0}}, "logit_bias has 999"),
    ],
)
def test_params_that_the_model_cannot_serve_are_refused(llm, good_tokens, params, message):
    with pytest.raises(ValueError, match=message):
        llm.generate([GOOD_PROMPT] * 2, [GOOD, SamplingParams(**params)], use_tqdm=False)
    check_unharmed(llm, good_tokens)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": float("nan")},
        {"temperature": -1},
        {"min_tokens": 9, "max_tokens": 8},
        {"best_of": 2},
        {"n": 2, "temperature": 0},
    ],
)
def test_contradictory_or_unknown_params_do_not_come_into_being(params):
    with pytest.raises(ValueError, match=next(iter(params))):
        SamplingParams(**params)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1e30},
        {"temperature": 1e-4},
        {"top_k": 10**6, "top_p": 1e-9},
        {"repetition_penalty": 1e30},
        {"repetition_penalty": 1e-30},
        {"seed": -(2**70)},
        {"logit_bias": {3: 1e300}},
        {"stop_token_ids": list(range(288)), "min_tokens": 5},
        {"allowed_token_ids": [3], "stop_token_ids": [3], "min_tokens": 2},
        {"max_tokens": None, "ignore_eos": True},
        {"prompt_logprobs": 20, "logprobs": 20},
    ],
)
def test_extreme_params_do_not_change_other_requests(llm, good_tokens, params):
    outputs = llm.generate([GOOD_PROMPT, GOOD_PROMPT], [SamplingParams(**params), GOOD])
    assert outputs[0].finished
    assert outputs[1].outputs[0].token_ids == good_tokens
    check_unharmed(llm, good_tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel_size": 3}, "a multiple of the model's 2 key-value heads"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size"),
        ({"block_size": 0}, "block_size"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
        ({"eviction_policy": "random"}, "eviction_policy"),
        ({"max_model_len": 513}, "the model has only 512 positions"),
        ({"max_model_len": 257}, "the pool has 16: lower max_model_len"),
        ({"max_num_batched_tokens": 8}, "must be at least max_num_seqs"),
        (
            {"enable_chunked_prefill": False, "max_num_batched_tokens": 255, "max_num_seqs": 8},
            "without chunked prefill",
        ),
        ({"device": "cuda"}, "PyTorch finds no GPU"),
    ],
)
def test_an_option_that_cannot_be_had_is_refused_at_the_start(checkpoint, options, message):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match=message):
        make_llm(checkpoint("llama"), **options)


def test_a_pool_of_one_block_serves_what_fits(checkpoint):
    llm = make_llm(checkpoint("llama"), num_gpu_blocks_override=1)
    with pytest.raises(ValueError, match="max_model_len is 16"):
        llm.generate([[1] * 16], GOOD, use_tqdm=False)
    outputs = llm.generate([[1] * 15, [2] * 3], SamplingParams(max_tokens=99, ignore_eos=True))
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 13]
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "length"]


def test_stop_strings_without_a_tokenizer_are_refused(checkpoint, good_tokens):
    llm = make_llm(checkpoint("llama"), skip_tokenizer_init=True)
    for params in (SamplingParams(stop="x"), SamplingParams(bad_words=["x"])):
        with pytest.raises(ValueError, match="need a tokenizer"):
            llm.generate([GOOD_PROMPT], params, use_tqdm=False)
    with pytest.raises(ValueError, match="give token ids"):
        llm.generate("text", GOOD, use_tqdm=False)
    check_unharmed(llm, good_tokens)


def test_a_request_id_in_use_is_refused_and_its_owner_goes_on(llm, good_tokens):
    llm.engine.add_request("mine", GOOD_PROMPT, GOOD)
    with pytest.raises(ValueError, match="a request 'mine' exists already"):
        llm.engine.add_request("mine", [1], GOOD)
    outputs = run(llm.engine)
    assert outputs["mine"].outputs[0].token_ids == good_tokens
    llm.engine.add_request("mine", [1], GOOD)  # free again
    run(llm.engine)


def test_ids_that_look_like_parts_of_another_request_are_no_clash(llm, good_tokens):
    llm.engine.add_request("a#1", GOOD_PROMPT, GOOD)
    llm.engine.add_request("a", GOOD_PROMPT, SamplingParams(n=2, max_tokens=3, ignore_eos=True))
    outputs = run(llm.engine)
    assert outputs["a#1"].outputs[0].token_ids == good_tokens
    assert [len(each.token_ids) for each in outputs["a"].outputs] == [3, 3]


def test_an_idle_step_does_nothing_and_keeps_the_cache(llm, good_tokens):
    check_unharmed(llm, good_tokens)
    num_cached = llm.engine.scheduler.pool.num_cached
    assert llm.engine.step() == []
    assert llm.engine.scheduler.pool.num_cached == num_cached > 0


# ---- a device that fails ------------------------------------------------------------------------


def run(engine):
    last = {}
    while engine.has_unfinished_requests:
        last |= {output.request_id: output for output in engine.step()}
    return last


def spoil(llm, monkeypatch, after_forward):
    """Let ``after_forward(input_ids, wanted, hidden)`` change what the model computes, or raise."""
    model = llm.engine._runner._model.decoder
    forward = type(model).forward

    def spoiled(input_ids, positions, caches, step, wanted):
        hidden = forward(model, input_ids, positions, caches, step, wanted)
        after_forward(input_ids, wanted, hidden)
        return hidden

    monkeypatch.setattr(model, "forward", spoiled)


def test_nan_ends_only_the_request_that_has_it_and_its_blocks_are_forgotten(
    checkpoint, good_tokens, monkeypatch
):
    llm = make_llm(checkpoint("llama"))

    def poison(input_ids, wanted, hidden):
        for start in (input_ids == BAD_PROMPT[0]).nonzero().flatten().tolist():
            hidden[wanted == start + len(BAD_PROMPT) - 1] = float("nan")

    with monkeypatch.context() as patch:
        spoil(llm, patch, poison)
        bad, good = llm.generate([BAD_PROMPT, GOOD_PROMPT], GOOD, use_tqdm=False)
        assert (bad.outputs[0].finish_reason, bad.outputs[0].token_ids) == ("error", [])
        assert "no logit was finite" in bad.outputs[0].stop_reason
        assert good.outputs[0].token_ids == good_tokens
    again = llm.generate([BAD_PROMPT, GOOD_PROMPT], GOOD, use_tqdm=False)
    assert [output.num_cached_tokens for output in again] == [0, 16]
    assert again[0].outputs[0].finish_reason == "length"
    check_unharmed(llm, good_tokens)


class Once:
    """Raises at its n-th call and never again."""

    def __init__(self, error, call=1):
        self.error, self.calls_left = error, call

    def __call__(self, *_):
        self.calls_left -= 1
        if self.calls_left == 0:
            raise self.error


@pytest.mark.parametrize("call", [1, 4])
def test_a_step_that_crashes_ends_its_requests_and_the_next_ones_are_right(
    checkpoint, good_tokens, monkeypatch, caplog, call
):
    caplog.set_level(logging.CRITICAL, "minimal_vllm")
    records = []
    llm = make_llm(checkpoint("llama"), observers=[records.append], max_num_seqs=2)
    spoil(llm, monkeypatch, Once(RuntimeError("out of memory"), call))
    outputs = llm.generate([GOOD_PROMPT, BAD_PROMPT, GOOD_PROMPT], GOOD, use_tqdm=False)
    reasons = [output.outputs[0].finish_reason for output in outputs]
    assert reasons == ["error", "error", "length"]
    assert outputs[0].outputs[0].stop_reason == "RuntimeError: out of memory"
    assert outputs[0].outputs[0].token_ids == good_tokens[: call - 1]
    assert outputs[2].outputs[0].token_ids == good_tokens
    assert outputs[2].num_cached_tokens == 0
    assert records[call - 1].finished == (("0", "error"), ("1", "error"))
    check_unharmed(llm, good_tokens)


def test_an_interrupt_while_requests_are_added_leaves_none(checkpoint, good_tokens, monkeypatch):
    llm = make_llm(checkpoint("llama"))
    add_request, interrupt = llm.engine.add_request, Once(KeyboardInterrupt(), call=2)

    def add_or_interrupt(*arguments, **options):
        interrupt()
        add_request(*arguments, **options)

    monkeypatch.setattr(llm.engine, "add_request", add_or_interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([GOOD_PROMPT, BAD_PROMPT], GOOD, use_tqdm=False)
    check_unharmed(llm, good_tokens)


def test_an_interrupt_in_a_step_leaves_no_request_and_no_nonsense_in_the_cache(
    checkpoint, good_tokens, monkeypatch
):
    llm = make_llm(checkpoint("llama"), max_num_seqs=1)
    zeroed = Once(KeyboardInterrupt())

    def zero_then_interrupt(input_ids, wanted, hidden):
        if zeroed.calls_left == 1:
            for layer in llm.built.caches:
                layer.key.zero_()
        zeroed()

    spoil(llm, monkeypatch, zero_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([GOOD_PROMPT, BAD_PROMPT], GOOD, use_tqdm=False)
    check_unharmed(llm, good_tokens)
