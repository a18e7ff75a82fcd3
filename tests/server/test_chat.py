import asyncio

import openai
import pytest

from tests.server.harness import MODEL

MESSAGES = [{"role": "user", "content": "Good evening. Have you come far?"}]
SHOUT = "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}{{ mood }}"


@pytest.fixture
def chat(client):
    def chat(messages=MESSAGES, extra=None, **options):
        arguments = {"model": MODEL, "messages": messages, "max_tokens": 12, **options}
        return client.chat.completions.create(extra_body=extra, **arguments)

    return chat


@pytest.fixture
def prompt_of(server):
    """The prompt that a conversation becomes."""

    def prompt_of(messages=MESSAGES, **options):
        tokens = server.post("/tokenize", messages=messages, **options).json()["tokens"]
        return server.post("/detokenize", tokens=tokens).json()["prompt"]

    return prompt_of


def text_of(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


@pytest.mark.client("openai", "plain")
def test_an_answer_is_what_the_offline_api_gives(chat, llm, expect):
    answer = chat(seed=1)
    expected = expect(llm.render_chat(MESSAGES), seed=1, max_tokens=12)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == (
        "assistant",
        expected.outputs[0].text,
    )
    assert (choice.finish_reason, choice.logprobs) == ("length", None)
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert answer.usage.completion_tokens == 12


@pytest.mark.client("openai", "streamed")
def test_a_stream_begins_with_the_role_and_ends_with_the_reason(chat):
    first, *others = list(chat(seed=1, stream=True))
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert text_of(others) == chat(seed=1).choices[0].message.content
    assert [each.choices[0].delta.role for each in others] == [None] * len(others)
    reasons = [each.choices[0].finish_reason for each in others]
    assert reasons == [None] * (len(others) - 1) + ["length"]


def test_the_async_client_gets_the_same(server, chat):
    async def run():
        async with server.async_client() as client:
            arguments = {"model": MODEL, "messages": MESSAGES, "seed": 1, "max_tokens": 12}
            whole = await client.chat.completions.create(**arguments)
            stream = await client.chat.completions.create(**arguments, stream=True)
            chunks = [chunk async for chunk in stream]
            return whole.choices[0].message.content, text_of(chunks)

    text = chat(seed=1).choices[0].message.content
    assert asyncio.run(run()) == (text, text)


def test_the_usage_of_a_stream_comes_last(chat):
    *chunks, last = chat(seed=1, stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in chunks)
    assert (last.choices, last.usage.completion_tokens) == ([], 12)


@pytest.mark.parametrize("stream", [False, True])
def test_n_answers_are_told_apart_by_their_index(chat, llm, expect, stream):
    texts = ["", "", ""]
    answer = chat(n=3, seed=1, stream=stream)
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            part = choice.delta if stream else choice.message
            texts[choice.index] += part.content or ""
    expected = expect(llm.render_chat(MESSAGES), n=3, seed=1, max_tokens=12)
    assert texts == [output.text for output in expected.outputs]


def test_without_a_limit_the_answer_may_fill_the_context(chat):
    long = [{"role": "user", "content": "a " * 1990}]
    answer = chat(long, max_tokens=None, extra={"ignore_eos": True})
    assert answer.usage.total_tokens == 2048


def test_max_completion_tokens_is_max_tokens(chat):
    assert chat(max_tokens=None, max_completion_tokens=3).usage.completion_tokens == 3
    with pytest.raises(openai.BadRequestError, match="give one of them"):
        chat(max_tokens=4, max_completion_tokens=3)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_have_text_bytes_and_alternatives(chat, llm, expect, stream):
    answer = chat(seed=1, logprobs=True, top_logprobs=2, stream=stream)
    choices = [chunk.choices[0] for chunk in (answer if stream else [answer])]
    content = [entry for each in choices if each.logprobs for entry in each.logprobs.content]
    (expected,) = expect(llm.render_chat(MESSAGES), seed=1, logprobs=2, max_tokens=12).outputs
    assert len(content) == 12
    for entry, token, known in zip(content, expected.token_ids, expected.logprobs, strict=True):
        assert entry.token == known[token].decoded_token
        assert bytes(entry.bytes).decode() == entry.token
        assert entry.logprob == pytest.approx(known[token].logprob, abs=1e-4)
        best = sorted(known.values(), key=lambda each: each.rank)[:2]
        assert [each.token for each in entry.top_logprobs] == [b.decoded_token for b in best]


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_may_be_named_whose_logprobs_are_wanted(chat, stream):
    """Whether or not they are among the most probable ones, beside the one that was chosen."""
    names = {"logprob_token_ids": [7, 5], "return_tokens_as_token_ids": True}
    answer = chat(seed=1, logprobs=True, top_logprobs=3, stream=stream, extra=names)
    choices = [chunk.choices[0] for chunk in (answer if stream else [answer])]
    content = [entry for each in choices if each.logprobs for entry in each.logprobs.content]
    assert len(content) == 12
    for entry in content:
        tokens = {each.token for each in entry.top_logprobs}
        assert tokens == {"token_id:5", "token_id:7", entry.token}


def test_logprobs_without_alternatives(chat):
    (choice,) = chat(logprobs=True).choices
    assert [entry.top_logprobs for entry in choice.logprobs.content] == [[]] * 12


def test_parts_of_a_message_are_its_lines(chat):
    parts = [{"type": "text", "text": "Good evening."}, {"type": "text", "text": "Well?"}]
    extra = {"return_token_ids": True}
    split = chat([{"role": "user", "content": parts}], extra=extra)
    joined = chat([{"role": "user", "content": "Good evening.\nWell?"}], extra=extra)
    assert split.prompt_token_ids == joined.prompt_token_ids


def test_the_generation_prompt_can_be_left_out(prompt_of):
    assert prompt_of() == prompt_of(add_generation_prompt=False) + '"'


def test_the_last_message_can_be_continued(prompt_of, chat):
    messages = [*MESSAGES, {"role": "assistant", "content": "From the sea"}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert prompt_of(messages, **options).endswith('"From the sea')
    assert chat(messages, extra=options).choices


def test_a_template_can_be_brought_and_told_more(prompt_of):
    options = {"chat_template": SHOUT, "chat_template_kwargs": {"mood": "glad"}}
    assert prompt_of([{"role": "user", "content": "Hi"}], **options) == "USER: Hi\nglad"


def test_a_template_that_is_a_path_reads_no_file(prompt_of):
    assert prompt_of(chat_template=__file__) == __file__


def test_token_ids_are_returned_if_asked_for(chat, llm):
    extra = {"return_token_ids": True}
    answer = chat(seed=1, extra=extra)
    prompt = llm.tokenizer.encode(llm.render_chat(MESSAGES), add_special_tokens=False)
    assert answer.prompt_token_ids == prompt
    first, *others = list(chat(seed=1, extra=extra, stream=True))
    assert first.prompt_token_ids == prompt
    streamed = [token for each in others for token in each.choices[0].token_ids]
    assert streamed == answer.choices[0].token_ids


def test_prompt_logprobs_are_returned_if_asked_for(chat):
    answer = chat(extra={"prompt_logprobs": 0})
    assert answer.prompt_logprobs[0] is None
    assert len(answer.prompt_logprobs) == answer.usage.prompt_tokens


def test_a_request_id_becomes_the_answer_s(chat):
    assert chat(extra={"request_id": "mine"}).id == "chatcmpl-mine"


def test_an_answer_can_be_sent_back_as_a_message(chat):
    message = chat(seed=1).choices[0].message
    again = chat([*MESSAGES, message.model_dump(), {"role": "user", "content": "Why?"}])
    assert again.choices[0].message.content


def test_an_answer_of_openai_s_can_be_sent_on_as_a_message(chat):
    answer = {"role": "assistant", "content": "No.", "refusal": None, "annotations": []}
    assert chat([*MESSAGES, answer, *MESSAGES]).choices
    assert chat([answer | {"annotations": [{"type": "url_citation"}]}]).choices
