from pydantic import TypeAdapter

from minimal_vllm.server.responses.input_items import Input
from minimal_vllm.server.responses.request import ResponsesRequest
from minimal_vllm.server.responses.translate import to_chat, to_messages


def messages(*items, instructions=None):
    return to_messages(instructions, TypeAdapter(Input).validate_python(list(items)))


def call(number):
    return {
        "type": "function_call",
        "call_id": f"c{number}",
        "name": "f",
        "arguments": "{}",
        "status": "completed",
    }


def output(number):
    return {"type": "function_call_output", "call_id": f"c{number}", "output": "1"}


def thought(text):
    return {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
    }


def said(text):
    return {"role": "assistant", "content": [{"type": "output_text", "text": text}]}


def test_one_turn_of_the_model_is_one_message():
    asked = {"role": "user", "content": "Go."}
    turn = messages(asked, thought("Hm."), said("Yes."), call(1), call(2), output(1), output(2))
    assert [message["role"] for message in turn] == ["user", "assistant", "tool", "tool"]
    assert turn[1]["reasoning"] == "Hm."
    assert turn[1]["content"] == "Yes."
    assert [each["id"] for each in turn[1]["tool_calls"]] == ["c1", "c2"]
    assert [message["tool_call_id"] for message in turn[2:]] == ["c1", "c2"]


def test_calls_after_a_result_are_another_turn():
    turns = messages(call(1), output(1), call(2), output(2))
    assert [message["role"] for message in turns] == ["assistant", "tool"] * 2


def test_a_call_without_text_has_no_content():
    assert messages(call(1))[0]["content"] is None


def test_the_system_speaks_once_at_the_beginning():
    developer = {"role": "developer", "content": "Obey."}
    turns = messages(developer, {"role": "user", "content": "Go."}, instructions="Be brief.")
    assert [message["role"] for message in turns] == ["system", "user"]
    assert [part["text"] for part in turns[0]["content"]] == ["Be brief.", "Obey."]


def test_reasoning_that_only_openai_can_read_is_left_out():
    encrypted = {"type": "reasoning", "summary": [], "encrypted_content": "x"}
    (message,) = messages(encrypted, said("Yes."))
    assert message["content"] == "Yes."
    assert not message["reasoning"]


def test_bookkeeping_is_noted_for_the_log():
    body = ResponsesRequest.model_validate({"input": "a", "store": False, "metadata": {"k": "v"}})
    assert to_chat(body).bookkeeping == {"store": False, "metadata": {"k": "v"}}
