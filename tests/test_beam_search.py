"""Beam search finds what a plain search of all continuations finds."""

from itertools import product

import pytest
import torch
from checkpoints import FAMILIES

from minimal_vllm import LLM
from minimal_vllm.beam_search import Beams, beam_search
from minimal_vllm.outputs import Logprob
from minimal_vllm.sampling_params import BeamSearchParams, SamplingParams

VOCABULARY, END = 4, 3


def logprobs_after(tokens):
    """Of an invented model: log-probabilities that depend on all tokens."""
    generator = torch.Generator().manual_seed(hash(tuple(tokens)) % 2**31)
    return torch.randn(VOCABULARY, generator=generator).log_softmax(-1).tolist()


def positions_of(texts, width=VOCABULARY):
    """The ``width`` most probable next tokens of each text, as the engine tells them."""
    for tokens in texts:
        logprobs = logprobs_after(tokens)
        ranked = sorted(range(VOCABULARY), key=lambda token: -logprobs[token])[:width]
        yield {token: Logprob(logprobs[token], rank, None) for rank, token in enumerate(ranked, 1)}


def search(prompts, width, length, **options):
    params = BeamSearchParams(beam_width=width, max_tokens=length, **options)
    found = beam_search(
        prompts, params, lambda texts: list(positions_of(texts)), eos_token_ids={END},
        max_model_len=50,
    )  # fmt: skip
    return [output.sequences for output in found]


def score(prompt, output, penalty):
    logprob = sum(logprobs_after([*prompt, *output[:i]])[token] for i, token in enumerate(output))
    return logprob / (len(prompt) + len(output) - (output[-1] == END)) ** penalty


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_search_that_is_wide_enough_finds_the_best_of_all_continuations(penalty):
    prompt = [0, 1]
    outputs = [
        output
        for length in (1, 2, 3)
        for output in product(range(VOCABULARY), repeat=length)
        if END not in output[:-1] and (length == 3 or output[-1] == END)
    ]
    best = sorted(outputs, key=lambda output: -score(prompt, output, penalty))
    (found,) = search([prompt], width=50, length=3, length_penalty=penalty)
    assert [tuple(beam.tokens[2:]) for beam in found] == best[:50]
    for beam in found:
        output = beam.tokens[2:]
        assert beam.cum_logprob == pytest.approx(score(prompt, output, 0))
        assert beam.finish_reason == ("stop" if output[-1] == END else "length")
        assert len(beam.logprobs) == len(output)


def test_prompts_are_searched_as_each_alone():
    prompts = [[0, 1], [2], [1, 1, 1]]
    alone = [search([prompt], 2, 4)[0] for prompt in prompts]
    assert search(prompts, 2, 4) == alone


def test_ignored_ends_are_tokens_like_others():
    (found,) = search([[0]], 64, 3, ignore_eos=True)
    assert {tuple(beam.tokens[1:]) for beam in found} == {*product(range(VOCABULARY), repeat=3)}


def test_a_beam_that_can_not_be_continued_is_dropped():
    beams = Beams([0], BeamSearchParams(beam_width=2, max_tokens=2), {END})
    beams.extend(list(positions_of([[0]])))
    first = beams.running[0].tokens
    beams.extend([*positions_of([first]), None])
    assert all(beam.tokens[:2] == first for beam in beams.running)


@pytest.fixture(scope="module")
def llm(checkpoint):
    return LLM(str(checkpoint("llama")), num_gpu_blocks_override=64, max_logprobs=20)


def test_the_engine_finds_the_beams_of_a_plain_search_in_transformers(llm, checkpoint):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=torch.float32)
    prompt, width = [5, 6, 7, 8], 4
    params = BeamSearchParams(width, 8, ignore_eos=True, length_penalty=0)
    (output,) = llm.beam_search({"prompt_token_ids": prompt}, params)

    beams, scores = torch.tensor([prompt]), torch.zeros(1)
    for _ in range(params.max_tokens):
        with torch.no_grad():
            logprobs = model(beams).logits[:, -1].log_softmax(-1)
        totals = (scores[:, None] + logprobs).flatten()
        scores, best = totals.topk(width)
        parents, tokens = best // logprobs.shape[1], best % logprobs.shape[1]
        beams = torch.cat([beams[parents], tokens[:, None]], dim=1)
    assert [beam.tokens for beam in output.sequences] == beams.tolist()
    found = [beam.cum_logprob for beam in output.sequences]
    assert found == pytest.approx(scores.tolist(), abs=1e-4)


def test_one_beam_is_greedy_decoding(llm):
    (output,) = llm.beam_search(["Once upon"], BeamSearchParams(beam_width=1, max_tokens=12))
    (greedy,) = llm.generate("Once upon", SamplingParams(temperature=0, max_tokens=12))
    (beam,) = output.sequences
    assert beam.tokens == [*greedy.prompt_token_ids, *greedy.outputs[0].token_ids]
    assert beam.text == llm.tokenizer.decode(beam.tokens)


def test_a_search_ends_with_the_context(llm):
    length = FAMILIES["llama"]["max_position_embeddings"]
    prompt = {"prompt_token_ids": [5] * (length - 2)}
    (output,) = llm.beam_search([prompt], BeamSearchParams(beam_width=2, max_tokens=9))
    assert max(len(beam.tokens) for beam in output.sequences) == length


def test_what_can_not_be_searched_is_refused(llm):
    with pytest.raises(ValueError, match="max_logprobs=22"):
        llm.beam_search("a", BeamSearchParams(beam_width=11, max_tokens=2))
    with pytest.raises(ValueError, match="samples nothing"):
        BeamSearchParams(beam_width=2, max_tokens=2, temperature=1.0)
    params = BeamSearchParams(beam_width=2, max_tokens=2, temperature=0.0)
    assert llm.beam_search("a", params, concurrency_limit=4, lora_request=None)
