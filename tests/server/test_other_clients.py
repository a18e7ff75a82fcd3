"""Clients that know nothing of this server, as they come: LangChain's and litellm."""

import pytest

from tests.server.harness import MODEL

QUESTION = "Good evening. Have you come far?"


@pytest.fixture
def known(client):
    """What OpenAI's own client gets."""
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=12, seed=1
    )
    return answer.choices[0].message.content


def test_langchain_invokes_and_streams(server, known):
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="none", model=MODEL, max_tokens=12, seed=1
    )
    answer = chat.invoke(QUESTION)
    assert answer.content == known
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata["output_tokens"] == 12
    chunks = list(chat.stream(QUESTION, stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == known
    assert (
        sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 12
    )


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm_completes_and_streams(server, known, monkeypatch, provider):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it is fetched from the web
    import litellm

    arguments = {
        "model": f"{provider}/{MODEL}",
        "api_base": f"{server.url}/v1",
        "api_key": "none",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 12,
        "seed": 1,
    }
    answer = litellm.completion(**arguments)
    assert answer.choices[0].message.content == known
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    chunks = list(litellm.completion(**arguments, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == known
