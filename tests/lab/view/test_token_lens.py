"""The lens shows what the engine computed, and changes nothing."""

from dataclasses import replace
from math import exp

import pytest
import torch
from checkpoints import FAMILIES, write_checkpoint

from minimal_vllm import LLM, SamplingParams
from minimal_vllm_lab.view.token_lens import LensError, LensQuery, TokenLens

PROMPT = "The old captain looked at the sea, and then he looked at the ship, and said:"
PARAMS = SamplingParams(max_tokens=24, temperature=0.7, top_p=0.9, logprobs=1, ignore_eos=True)


@pytest.fixture(scope="module")
def llm():
    """An engine that stands still in the middle of a request, whose blocks are not adjacent."""
    llm = LLM(num_gpu_blocks_override=32, max_model_len=128)
    tokens = llm.tokenizer.encode(PROMPT)
    for name in ("other", "seen"):
        llm.engine.add_request(name, tokens if name == "seen" else tokens[::-1], PARAMS)
    for _ in range(8):
        llm.engine.step()
    return llm


@pytest.fixture(scope="module")
def request_(llm):
    return next(each for each in llm.engine.scheduler.running if each.request_id == "seen")


def look(llm, **query):
    return TokenLens(llm.config, llm.built).look(LensQuery(request_id="seen", **query))


def test_the_newest_token_leads_to_the_token_that_the_engine_chose(llm, request_):
    before = [cache.key.clone() for cache in llm.built.caches]
    newest = request_.num_computed_tokens - 1
    assert look(llm).position == newest
    for position in range(request_.num_prompt_tokens - 1, newest + 1):
        report = look(llm, position=position)
        assert report.chosen == request_.token_ids[position + 1]
        chosen = next(each for each in report.candidates if each.token_id == report.chosen)
        assert chosen.after > 0, "the filters of the sampler let it pass"
    for cache, copy in zip(llm.built.caches, before, strict=True):
        assert torch.equal(cache.key, copy)


def test_probabilities_are_the_engines_own(llm):
    (output,) = LLM(max_model_len=128).generate(
        PROMPT, SamplingParams(max_tokens=1, temperature=0, logprobs=10), use_tqdm=False
    )
    (known,) = output.outputs[0].logprobs
    report = look(llm, position=len(output.prompt_token_ids) - 1)
    shown = {each.token_id: each.before for each in report.candidates}
    for token_id, entry in known.items():
        assert shown[token_id] == pytest.approx(exp(entry.logprob), abs=1e-3)


def test_attention_is_shared_out_among_the_tokens_up_to_itself(llm):
    for layer in (0, 3):
        for head in (None, 1):
            report = look(llm, position=20, layer=layer, head=head)
            assert len(report.weights) == 21
            assert sum(report.weights) == pytest.approx(1, abs=5e-3)
    assert len(report.queries) == report.num_heads


def test_temperature_top_k_and_top_p_change_only_what_is_drawn(llm):
    plain = look(llm, temperature=1.0, top_k=0, top_p=1.0)
    assert [each.after for each in plain.candidates] == pytest.approx(
        [each.before for each in plain.candidates], abs=1e-4
    )
    three = look(llm, temperature=1.0, top_k=3, top_p=1.0).candidates
    assert sum(each.after > 0 for each in three) == 3
    assert sum(each.after for each in three) == pytest.approx(1, abs=1e-3)
    hot, cold = look(llm, temperature=2.0), look(llm, temperature=0.3)
    assert hot.candidates[0].before == cold.candidates[0].before == plain.candidates[0].before
    assert hot.candidates[0].after < cold.candidates[0].after
    assert look(llm, temperature=0.0).candidates[0].after == 1
    assert look(llm).temperature == 0.7, "the request's own"


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({"position": 90}, "not been computed yet"),
        ({"layer": 99}, "layers"),
        ({"head": 99}, "heads"),
    ],
)
def test_what_cannot_be_seen_is_refused(llm, query, error):
    with pytest.raises(LensError, match=error):
        look(llm, **query)


def test_a_token_whose_window_has_been_released_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path, FAMILIES["mistral-window"])
    options = {"num_gpu_blocks_override": 32, "block_size": 4, "max_model_len": 64}
    llm = LLM(str(folder), **options)
    llm.engine.add_request("seen", list(range(3, 23)), PARAMS)
    for _ in range(4):
        llm.engine.step()
    assert sum(look(llm).weights) == pytest.approx(1, abs=5e-3)
    with pytest.raises(LensError, match="window of a layer has passed"):
        look(llm, position=5)


def test_a_request_that_does_not_run_is_refused(llm):
    with pytest.raises(LensError, match="does not run"):
        TokenLens(llm.config, llm.built).look(LensQuery(request_id="nobody"))


def test_an_engine_of_several_processes_is_refused_and_not_waited_for(llm):
    config = replace(llm.config, tensor_parallel_size=2)
    with pytest.raises(LensError, match="2 processes"):
        TokenLens(config, llm.built).look(LensQuery(request_id="seen"))


def test_an_eagle_head_reads_nothing_of_what_the_lens_computes():
    config = {"method": "eagle3", "num_speculative_tokens": 3}
    llm = LLM(num_gpu_blocks_override=32, max_model_len=128, speculative_config=config)
    llm.engine.add_request("seen", llm.tokenizer.encode(PROMPT), PARAMS)
    for _ in range(3):
        llm.engine.step()
    states = llm.engine._runner._draft.head.states
    before = states.clone()
    assert before.any()
    look(llm, position=5)
    assert torch.equal(states, before)
    llm.engine.step()
    assert not torch.equal(states, before), "the engine still tells the head"
