from minimal_vllm.server.messages.blocks import Message
from minimal_vllm.server.messages.request import MessagesRequest
from minimal_vllm.server.messages.translate import to_chat, to_messages

CALL = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}, "cache_control": None}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "1", "is_error": True}
TEXT = {"type": "text", "text": "Go on."}


def messages(*turns, system=None):
    given = [Message(role=role, content=content) for role, content in turns]
    return to_messages(system, given)


def test_results_come_before_the_text_that_is_sent_with_them():
    turns = messages(("assistant", [CALL]), ("user", [RESULT, TEXT]))
    assert [turn["role"] for turn in turns] == ["assistant", "tool", "user"]
    assert turns[0]["content"] is None
    assert turns[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert (turns[1]["tool_call_id"], turns[1]["content"]) == ("t1", "1")
    assert turns[2]["content"] == "Go on."


def test_a_result_without_content_is_empty():
    (turn,) = messages(("user", [{"type": "tool_result", "tool_use_id": "t1"}]))
    assert (turn["role"], turn["content"]) == ("tool", "")


def test_thinking_is_reasoning_and_what_is_redacted_is_left_out():
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    redacted = {"type": "redacted_thinking", "data": "x"}
    (turn,) = messages(("assistant", [thinking, redacted, TEXT]))
    assert (turn["reasoning"], turn["content"]) == ("Hm.", "Go on.")


def test_an_assistant_that_said_nothing_may_be_sent_back():
    assert messages(("user", "a"), ("assistant", []), ("user", "b"))[1]["content"] is None


def test_the_system_comes_first():
    turns = messages(("user", "a"), system="Be brief.")
    assert [turn["role"] for turn in turns] == ["system", "user"]


def chat(**fields):
    user = [{"role": "user", "content": "a"}]
    return to_chat(MessagesRequest.model_validate({"messages": user, "max_tokens": 1, **fields}))


def test_the_answer_continues_the_assistants_last_message():
    last = {"role": "assistant", "content": "I"}
    continued = chat(messages=[{"role": "user", "content": "a"}, last])
    assert continued.continue_final_message
    assert not continued.add_generation_prompt
    assert not chat().continue_final_message


def test_thinking_and_effort_are_variables_of_the_template():
    variables = chat(thinking={"type": "disabled"}, output_config={"effort": "low"})
    assert variables.template_variables == {"enable_thinking": False, "reasoning_effort": "low"}
    assert chat(thinking={"type": "adaptive"}).template_variables == {}
