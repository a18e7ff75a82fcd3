"""A real model answers as transformers has it answer, and as its makers meant it to."""

import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.model.fetch import FETCHABLE
from tests.real.prompts import CHATS, TEXTS
from tests.server.harness import process

pytestmark = pytest.mark.real

NUM_TOKENS = 8
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def prompts(llm):
    """All thirty as token ids."""
    texts = [*TEXTS, *map(llm.render_chat, CHATS)]
    return [llm.tokenizer.encode(text, add_special_tokens=False) for text in texts]


@torch.no_grad()
def logprobs_of(model, prompt, tokens):
    """``[len(tokens), V]``: each row is about one of the tokens, given all before it."""
    logits = model(torch.tensor([prompt + tokens[:-1]]), logits_to_keep=len(tokens)).logits
    return logits[0].log_softmax(dim=-1)


@pytest.fixture(scope="module")
def outputs(llm, prompts):
    """The engine's greedy continuations, with the log-probability of each token."""
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0)
    return llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params)


def test_greedy_tokens_and_their_probabilities_are_those_of_transformers(
    outputs, transformers_model, prompts
):
    assert len(prompts) == 30
    assert max(map(len, prompts)) == pytest.approx(1500, rel=0.05)
    for prompt, output in zip(prompts, outputs, strict=True):
        (found,) = output.outputs
        expected = logprobs_of(transformers_model, prompt, found.token_ids)
        assert expected.argmax(dim=-1).tolist() == found.token_ids
        # Weights of a quantized file are kept in half precision: up to 2**-11 of a matrix is lost.
        assert chosen_logprobs(found) == pytest.approx(
            expected.max(dim=-1).values.tolist(), abs=2e-2
        )


def test_nothing_but_the_rounding_of_weights_sets_probabilities_apart_from_transformers(
    outputs, rounded_transformers_model, prompts
):
    for prompt, output in zip(prompts, outputs, strict=True):
        (found,) = output.outputs
        expected = logprobs_of(rounded_transformers_model, prompt, found.token_ids)
        assert expected.argmax(dim=-1).tolist() == found.token_ids
        assert chosen_logprobs(found) == pytest.approx(
            expected.max(dim=-1).values.tolist(), abs=1e-3
        )


def chosen_logprobs(completion):
    """The log-probability of each of the completion's tokens."""
    pairs = zip(completion.token_ids, completion.logprobs, strict=True)
    return [position[token].logprob for token, position in pairs]


@pytest.mark.parametrize("text", [*TEXTS, *(f"{CHATS!r} " * 2, "  7", "7  8\n 9", "\r\n\t x")])
def test_texts_are_tokenized_as_the_original_does(llm, original_tokenizer, text):
    expected = original_tokenizer.encode(text, add_special_tokens=False).ids
    assert llm.tokenizer.encode(text) == expected
    assert llm.tokenizer.decode(expected) == text


@pytest.mark.parametrize("chat", CHATS)
def test_chats_are_rendered_as_transformers_does(llm, reader, original_tokenizer, chat):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=original_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=reader.fields["tokenizer.chat_template"].contents(),
    )
    expected = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert llm.render_chat(chat) == expected


def test_transformers_own_conversion_agrees(llm, smollm2):
    """But for digits after several spaces: it leaves out the original's rule for single digits."""
    theirs = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    ours = llm.tokenizer
    for text in TEXTS:
        if not re.search(r"  \d", text):
            assert ours.encode(text) == theirs.encode(text)
    for chat in CHATS:
        expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert llm.render_chat(chat) == expected


def test_bfloat16_gives_nearly_the_same_probabilities(llm, smollm2, prompts):
    rounded = LLM(str(smollm2), dtype="bfloat16", max_model_len=2048)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    texts = [{"prompt_token_ids": prompt} for prompt in prompts[:6]]
    means = []
    for engine in (llm, rounded):
        outputs = engine.generate(texts, params)
        logprobs = [
            each[token].logprob
            for output in outputs
            for token, each in zip(
                output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True
            )
        ]
        means.append(sum(logprobs) / len(logprobs))
    assert means[1] == pytest.approx(means[0], abs=0.1)
    # A prompt whose answer is far ahead of others: how 16-bit products round depends on the CPU.
    (answer,) = rounded.generate(TEXTS[0], SamplingParams(temperature=0, max_tokens=5))
    assert "Paris" in answer.outputs[0].text


def test_it_is_chatted_with_by_name(smollm2):
    """The README's second command; ``exit`` ends it."""
    command = [sys.executable, "-m", "minimal_vllm", "chat", "--model", "smollm2"]
    said = subprocess.run(
        [*command, "--max-model-len", "512"],
        input=f"{QUESTION}\nexit\nnever asked\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout == "The capital of France is Paris.\n"


def test_it_is_served_by_name(smollm2):
    with process("smollm2", "--max-model-len=512") as server:
        answer = server.client().chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": QUESTION}]
        )
    assert answer.choices[0].message.content == "The capital of France is Paris."


def test_the_file_is_the_one_that_was_recorded(smollm2):
    assert smollm2.stat().st_size == FETCHABLE["smollm2"].num_bytes
