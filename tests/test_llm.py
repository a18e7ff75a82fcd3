import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from checkpoints import BYTES, EOS_TOKEN, FAMILIES, SPECIAL_TOKENS, write_checkpoint, write_json

from minimal_vllm import LLM, SamplingParams
from minimal_vllm import llm as llm_module

TEXT = "the rain in Spain and then some"
EOS = len(BYTES)
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
CROWD = [[(13 * i * i + 7 * n) % 250 for i in range(5 + 6 * n)] for n in range(6)]


def make_llm(folder, **options):
    return LLM(str(folder), **{"num_gpu_blocks_override": 32, **options})


@pytest.fixture(scope="module")
def records():
    return []


@pytest.fixture(scope="module")
def llm(checkpoint, records):
    return make_llm(checkpoint("qwen3"), observers=[records.append])


@pytest.fixture
def new_records(records):
    records.clear()
    return records


def generate(llm, prompts, params=GREEDY, **options):
    return llm.generate(prompts, params, use_tqdm=False, **options)


def tokens_of(outputs):
    return [completion.token_ids for output in outputs for completion in output.outputs]


def complete(llm, prompt=TEXT, **params):
    """The only completion of ``prompt``, greedy unless told otherwise."""
    defaults = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    return generate(llm, prompt, SamplingParams(**(defaults | params)))[0].outputs[0]


# ---- prompts ------------------------------------------------------------------------------------


def test_a_prompt_may_come_as_text_or_ids_bare_or_in_a_dict(llm):
    ids = llm.tokenizer.encode(TEXT)
    forms = [TEXT, ids, tuple(ids), {"prompt": TEXT}, {"prompt_token_ids": ids}, np.array(ids)]
    outputs = [generate(llm, form)[0] for form in forms] + generate(llm, forms)
    assert len({tuple(tokens) for tokens in tokens_of(outputs)}) == 1
    assert all(output.prompt_token_ids == ids for output in outputs)
    assert [output.prompt for output in outputs[:6]] == [TEXT, None, None, TEXT, None, None]
    assert {type(token) for output in outputs for token in output.prompt_token_ids} == {int}


def test_a_text_given_beside_its_ids_is_only_handed_back(llm):
    output = generate(llm, {"prompt": "what I called it", "prompt_token_ids": [1, 2, 3]})[0]
    assert (output.prompt, output.prompt_token_ids) == ("what I called it", [1, 2, 3])


def test_outputs_come_in_the_prompts_order_whoever_ends_first(llm):
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (9, 1, 5)]
    outputs = generate(llm, ["a", "b", "c"], params)
    assert [output.prompt for output in outputs] == ["a", "b", "c"]
    assert [len(tokens) for tokens in tokens_of(outputs)] == [9, 1, 5]
    assert [output.request_id for output in outputs] == sorted(
        (output.request_id for output in outputs), key=int
    )


def test_threads_take_turns(llm):
    prompts = [[seed] * 9 for seed in range(12)]
    alone = [tokens_of(generate(llm, [prompt])) for prompt in prompts]
    with ThreadPoolExecutor(max_workers=4) as threads:
        together = threads.map(lambda prompt: tokens_of(generate(llm, [prompt])), prompts)
    assert list(together) == alone


def test_prompts_may_come_one_by_one(llm):
    assert tokens_of(generate(llm, iter(CROWD))) == tokens_of(generate(llm, CROWD))


@pytest.fixture
def beginning_early(llm, monkeypatch):
    """Let the engine begin as soon as two requests wait, as on a GPU when many do."""
    engine = llm.engine
    monkeypatch.setattr(llm_module, "MANY_WAITING", 2)
    monkeypatch.setattr(engine, "_runs_ahead", True)
    monkeypatch.setattr(engine.scheduler, "needs_pending_tokens", lambda: bool(engine._in_flight))
    return llm


def test_the_first_prompts_may_be_computed_while_others_are_added(
    llm, beginning_early, new_records
):
    outputs = generate(beginning_early, CROWD)
    assert new_records[0].num_running == 2
    assert tokens_of(outputs) == [complete(llm, prompt).token_ids for prompt in CROWD]


def test_a_prompt_that_is_refused_ends_those_that_were_begun(beginning_early):
    with pytest.raises(ValueError, match="out of vocabulary"):
        generate(beginning_early, [*CROWD, [10**6]])
    engine = beginning_early.engine
    assert not engine.has_unfinished_requests
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks
    assert len(generate(beginning_early, CROWD)) == len(CROWD)


def test_no_prompts_give_no_outputs(llm):
    assert generate(llm, []) == []


def test_each_prompt_needs_its_own_params_if_several_are_given(llm):
    with pytest.raises(ValueError, match="there are 2 prompts but 1 sampling_params"):
        generate(llm, ["a", "b"], [GREEDY])


def test_salts_separate_prompts_that_are_equal(llm):
    ids = [9] * 33
    prompts = [{"prompt_token_ids": ids, "cache_salt": salt} for salt in ("x", "x", "y")]
    outputs = [generate(llm, prompt)[0] for prompt in prompts]
    assert [output.num_cached_tokens for output in outputs] == [0, 32, 0]


def test_priorities_need_their_policy_and_one_for_each_prompt(llm, checkpoint):
    with pytest.raises(ValueError, match="scheduling_policy='priority'"):
        generate(llm, ["a"], priority=[1])
    records = []
    options = {"scheduling_policy": "priority", "max_num_seqs": 1, "observers": [records.append]}
    llm = make_llm(checkpoint("qwen3"), **options)
    with pytest.raises(ValueError, match="there are 2 prompts but 1 priorities"):
        generate(llm, ["a", "b"], priority=[1])
    outputs = generate(llm, ["a", "b", "c"], priority=[3, 1, 2])
    ended = [request_id for record in records for request_id, _ in record.finished]
    assert ended == [outputs[place].request_id for place in (1, 2, 0)]


# ---- how an output ends -------------------------------------------------------------------------


def test_max_tokens_ends_it_by_length(llm):
    completion = complete(llm, max_tokens=5)
    assert (len(completion.token_ids), completion.finish_reason) == (5, "length")
    assert completion.stop_reason is None


def test_max_model_len_ends_it_by_length(checkpoint):
    llm = make_llm(checkpoint("qwen3"), max_model_len=24)
    completion = complete(llm, [5] * 20, max_tokens=None)
    assert (len(completion.token_ids), completion.finish_reason) == (4, "length")


def first_at(tokens, index):
    """A position from ``index`` on whose token has not occurred before."""
    return next(i for i in range(index, len(tokens)) if tokens[i] not in tokens[:i])


def test_a_stop_token_ends_it_and_is_kept_in_the_ids_but_not_in_the_text(llm):
    whole = complete(llm)
    at = first_at(whole.token_ids, 3)
    stop = whole.token_ids[at]
    completion = complete(llm, stop_token_ids=[stop])
    assert completion.token_ids == whole.token_ids[: at + 1]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    tokenizer = llm.tokenizer
    assert completion.text == tokenizer.decode(whole.token_ids[:at], skip_special_tokens=True)
    kept = complete(llm, stop_token_ids=[stop], include_stop_str_in_output=True)
    assert kept.text == tokenizer.decode(whole.token_ids[: at + 1], skip_special_tokens=True)


@pytest.fixture(scope="module")
def soon_ended(tmp_path_factory):
    """A model whose greedy answer to TEXT ends with EOS after a few tokens, and that answer."""
    folder = write_checkpoint(tmp_path_factory.mktemp("eos"), FAMILIES["qwen3"])
    tokens = complete(make_llm(folder)).token_ids
    at = first_at(tokens, 3)
    config = {**FAMILIES["qwen3"], "eos_token_id": tokens[at]}
    write_json(folder / "config.json", config)
    return folder, tokens, at


def test_eos_ends_it_unless_it_is_ignored(soon_ended):
    folder, tokens, at = soon_ended
    llm = make_llm(folder)
    completion = complete(llm, ignore_eos=False)
    assert completion.token_ids == tokens[: at + 1]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)
    ignoring = complete(llm, ignore_eos=True)
    assert (ignoring.token_ids, ignoring.finish_reason) == (tokens, "length")


def test_no_stop_token_comes_before_min_tokens(soon_ended):
    folder, tokens, at = soon_ended
    completion = complete(make_llm(folder), ignore_eos=False, min_tokens=at + 4)
    assert completion.token_ids[:at] == tokens[:at]
    assert tokens[at] not in completion.token_ids[: at + 4]
    assert len(completion.token_ids) >= at + 4


def test_generation_configs_eos_ends_it_too(soon_ended, tmp_path):
    _, tokens, at = soon_ended
    folder = write_checkpoint(tmp_path, FAMILIES["qwen3"])
    write_json(folder / "generation_config.json", {"eos_token_id": [EOS, tokens[at]]})
    assert complete(make_llm(folder), ignore_eos=False).token_ids == tokens[: at + 1]


def test_a_stop_string_ends_it_wherever_it_stands(llm):
    params = {"max_tokens": 40, "allowed_token_ids": list(range(60, 90))}
    whole = complete(llm, **params)
    stop = whole.text[7:10]
    at = whole.text.index(stop)
    completion = complete(llm, **params, stop=["never there", stop])
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    assert completion.text == whole.text[:at]
    assert len(completion.token_ids) < len(whole.token_ids)
    kept = complete(llm, **params, stop=stop, include_stop_str_in_output=True)
    assert kept.text == whole.text[: at + len(stop)]


def test_a_stop_string_in_the_last_token_counts_before_the_length(llm):
    params = {"max_tokens": 6, "allowed_token_ids": list(range(60, 90))}
    last = complete(llm, **params).text[-1]
    at = complete(llm, **params).text.index(last)
    completion = complete(llm, **{**params, "max_tokens": at + 1}, stop=last)
    assert (completion.finish_reason, completion.stop_reason) == ("stop", last)


def test_a_bad_word_is_avoided(llm):
    params = {"max_tokens": 40, "allowed_token_ids": llm.tokenizer.encode("th e")}
    assert complete(llm, **params).text.startswith("th")
    completion = complete(llm, **params, bad_words=["th"])
    assert "th" not in completion.text
    assert len(completion.token_ids) == 40


# ---- what an output holds -----------------------------------------------------------------------


def test_text_is_the_decoded_tokens(llm):
    completion = complete(llm)
    tokenizer = llm.tokenizer
    assert completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)
    assert complete(llm, detokenize=False).text == ""
    assert complete(llm, detokenize=False).token_ids == completion.token_ids


def test_special_tokens_are_shown_only_if_wanted(llm):
    params = {"allowed_token_ids": [EOS], "max_tokens": 2}
    assert complete(llm, **params).text == ""
    assert complete(llm, **params, skip_special_tokens=False).text == EOS_TOKEN * 2


def test_logprobs_cover_every_token_and_say_their_text(llm):
    completion = complete(llm, logprobs=2, max_tokens=5)
    token_text = llm.tokenizer.token_text
    assert len(completion.logprobs) == 5
    for token, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        assert entry[token].rank == 1
        assert 2 <= len(entry) <= 3
        assert all(each.decoded_token == token_text(id_) for id_, each in entry.items())
    pairs = zip(completion.token_ids, completion.logprobs, strict=True)
    total = sum(entry[token].logprob for token, entry in pairs)
    assert completion.cumulative_logprob == pytest.approx(total)
    without = complete(llm)
    assert (without.logprobs, without.cumulative_logprob) == (None, None)


def test_the_whole_vocabulary_can_be_asked_for_where_its_size_is_allowed(checkpoint):
    size = make_llm(checkpoint("llama")).built.files.config.vocab_size
    everything = make_llm(checkpoint("llama"), max_logprobs=size)
    assert len(complete(everything, max_tokens=1, logprobs=-1).logprobs[0]) == size


def test_metrics_are_in_the_order_of_events(llm):
    metrics = generate(llm, TEXT)[0].metrics
    assert metrics.arrival_time <= metrics.first_token_time <= metrics.finished_time


def test_without_a_tokenizer_ids_go_in_and_ids_come_out(checkpoint, llm):
    bare = make_llm(checkpoint("qwen3"), skip_tokenizer_init=True)
    ids = llm.tokenizer.encode(TEXT)
    completion = complete(bare, ids, logprobs=1)
    assert (completion.token_ids, completion.text) == (complete(llm).token_ids, "")
    assert all(each.decoded_token is None for each in completion.logprobs[0].values())


# ---- randomness ---------------------------------------------------------------------------------

RANDOM = SamplingParams(temperature=1.5, seed=11, max_tokens=14, ignore_eos=True)


def test_a_seeded_request_gives_the_same_alone_in_a_crowd_and_after_preemption(llm, checkpoint):
    alone = [tokens_of(generate(llm, prompt, RANDOM))[0] for prompt in CROWD]
    assert len({tuple(tokens) for tokens in alone}) == len(CROWD)
    assert tokens_of(generate(llm, CROWD, RANDOM)) == alone
    assert tokens_of(generate(llm, CROWD[::-1], RANDOM)) == alone[::-1]
    records = []
    options = {"block_size": 4, "num_gpu_blocks_override": 24, "observers": [records.append]}
    small = make_llm(checkpoint("qwen3"), **options)
    assert tokens_of(generate(small, CROWD, RANDOM)) == alone
    assert any(record.preempted for record in records)


def test_requests_without_a_seed_differ_and_the_engines_seed_repeats_them(checkpoint):
    params = SamplingParams(temperature=1.5, max_tokens=10, ignore_eos=True)
    first, second, other = (
        tokens_of(generate(make_llm(checkpoint("qwen3"), seed=seed), [TEXT] * 3, params))
        for seed in (1, 1, 2)
    )
    assert first == second != other
    assert len({tuple(tokens) for tokens in first}) == 3


def test_n_completions_differ_and_share_the_prompts_blocks(llm, new_records):
    prompt = [3] * 40
    params = SamplingParams(n=3, temperature=1.5, seed=5, max_tokens=6, ignore_eos=True)
    output = generate(llm, [prompt], params)[0]
    assert [completion.index for completion in output.outputs] == [0, 1, 2]
    assert len({tuple(completion.token_ids) for completion in output.outputs}) == 3
    first, *others = new_records[0].scheduled
    assert first.num_tokens == 40
    assert [each.num_tokens for each in others] == [8, 8]
    assert all(each.cached_blocks == first.new_blocks[:2] for each in others)
    assert tokens_of(generate(llm, [prompt], params)) == tokens_of([output])


# ---- defaults, chat, progress -------------------------------------------------------------------


def test_default_params_are_the_models_or_the_engines(tmp_path):
    folder = write_checkpoint(tmp_path, FAMILIES["qwen3"])
    raw = {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "max_new_tokens": 7}
    write_json(folder / "generation_config.json", raw)
    llm = make_llm(folder)
    defaults = llm.get_default_sampling_params()
    assert defaults == SamplingParams(temperature=0.6, top_k=20, top_p=0.9, max_tokens=7)
    assert len(llm.generate(TEXT, use_tqdm=False)[0].outputs[0].token_ids) <= 7
    plain = make_llm(folder, generation_config="vllm")
    assert plain.get_default_sampling_params() == SamplingParams()


CONVERSATION = [{"role": "user", "content": "hi"}]


def test_chat_renders_the_models_template(llm):
    one = llm.chat(CONVERSATION, GREEDY, use_tqdm=False)[0]
    assert one.prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert one.prompt_token_ids[0] == EOS + SPECIAL_TOKENS.index("<|im_start|>")
    several = llm.chat([CONVERSATION, CONVERSATION[:]], GREEDY, use_tqdm=False)
    assert tokens_of(several) == tokens_of([one, one])


def test_chat_takes_a_template_of_the_callers(llm):
    template = "{{ messages[0].content }}{{ mark }}"
    output = llm.chat(
        CONVERSATION,
        GREEDY,
        use_tqdm=False,
        chat_template=template,
        chat_template_kwargs={"mark": "!"},
    )[0]
    assert output.prompt == "hi!"


def test_chat_gives_the_template_contents_in_the_format_that_is_asked_for(llm):
    options = {"chat_template": "{{ messages[0]['content'] }}", "use_tqdm": False}
    messages = [{"role": "user", "content": "Hi"}]
    for content_format, prompt in (
        ("string", "Hi"),
        ("openai", "[{'type': 'text', 'text': 'Hi'}]"),
    ):
        options["chat_template_content_format"] = content_format
        assert llm.chat(messages, GREEDY, **options)[0].prompt == prompt
    with pytest.raises(ValueError, match="one of auto, string, openai"):
        llm.chat(messages, GREEDY, **options | {"chat_template_content_format": "no"})


def test_a_model_without_a_template_cannot_chat(tmp_path):
    folder = write_checkpoint(tmp_path, FAMILIES["qwen3"])
    settings = folder / "tokenizer_config.json"
    raw = json.loads(settings.read_text())
    del raw["chat_template"]
    write_json(settings, raw)
    with pytest.raises(ValueError, match="no chat template"):
        make_llm(folder).chat(CONVERSATION, GREEDY, use_tqdm=False)


class Bar:
    """Stands in for tqdm and remembers what it was told."""

    def __init__(self, **options):
        self.options, self.updates, self.postfix = options, 0, ""
        Bar.last = self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def update(self):
        self.updates += 1

    def set_postfix_str(self, text, refresh):
        self.postfix = text


def test_progress_counts_prompts_and_tokens(llm, capsys):
    generate(llm, ["a", "b"])
    assert capsys.readouterr().err == ""
    llm.generate(["a", "b"], GREEDY)
    assert "2/2" in capsys.readouterr().err
    llm.generate(["a", "b"], GREEDY, use_tqdm=Bar)
    assert (Bar.last.options["total"], Bar.last.updates) == (2, 2)
    assert Bar.last.postfix.startswith("24 tokens")


# ---- step records -------------------------------------------------------------------------------


def test_step_records_add_up(checkpoint):
    records = []
    llm = make_llm(
        checkpoint("qwen3"),
        observers=[records.append],
        block_size=4,
        num_gpu_blocks_override=24,
        max_num_batched_tokens=16,
        max_num_seqs=8,
    )
    outputs = generate(llm, CROWD, RANDOM)
    assert [record.step for record in records] == list(range(len(records)))
    sampled = Counter(
        each.request_id for record in records for each in record.scheduled if each.sampled_tokens
    )
    assert sampled == {output.request_id: 14 for output in outputs}
    assert sorted(pair for record in records for pair in record.finished) == sorted(
        (output.request_id, "length") for output in outputs
    )
    num_preemptions = sum(len(record.preempted) for record in records)
    assert num_preemptions > 0
    assert sum(len(record.admitted) for record in records) == len(CROWD) + num_preemptions
    tables = {}
    for record in records:
        follow(tables, record)
        assert sum(each.num_tokens for each in record.scheduled) <= 16
        assert min(record.schedule_seconds, record.run_seconds, record.update_seconds) >= 0
        assert record.num_running == len(tables)
        assert record.num_blocks == 24
        in_use = {block for table in tables.values() for block in table}
        assert record.num_free_blocks == 24 - len(in_use)
        assert 0 <= record.num_cached_blocks <= 24
    assert records[-1].num_running == records[-1].num_waiting == 0
    assert records[-1].prefix_queries == sum(map(len, CROWD))


def follow(tables, record):
    """Keep the requests' block tables, from what a record tells."""
    for request_id in record.preempted:
        del tables[request_id]
    for each in record.scheduled:
        assert (each.request_id in record.admitted) is (each.request_id not in tables)
        tables.setdefault(each.request_id, list(each.cached_blocks)).extend(each.new_blocks)
        assert len(tables[each.request_id]) == -(-(each.start + each.num_tokens) // 4)
    for request_id, _ in record.finished:
        del tables[request_id]


def test_aborted_requests_are_told_of_in_the_next_record(llm, new_records):
    llm.engine.add_request("gone", [1, 2], GREEDY)
    llm.engine.abort("gone")
    generate(llm, "a")
    assert new_records[0].finished == (("gone", "abort"),)
