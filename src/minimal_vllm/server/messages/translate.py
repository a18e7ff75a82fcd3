"""Translating a request of ``/v1/messages`` to one of the chat path."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from minimal_vllm.server.api_model import FieldClass
from minimal_vllm.server.chat.other_apis import TranslatedChat, make_chat
from minimal_vllm.server.messages.blocks import (
    Message,
    TextBlock,
    TextOrBlocks,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from minimal_vllm.server.messages.request import (
    ClientTool,
    CountTokensRequest,
    MessagesRequest,
    ToolChoice,
)

ChatMessage = dict[str, Any]
"""A message of ``/v1/chat/completions``."""


class MessagesChat(TranslatedChat):
    """The chat that a request of ``/v1/messages`` becomes."""

    client_fields: ClassVar[Mapping[str, str]] = {
        "stop": "stop_sequences",
        "reasoning_effort": "output_config.effort",
        "response_format": "output_config.format",
        "response_format.json_schema.schema": "output_config.format.schema",
        "tool_choice.function.name": "tool_choice.name",
    }


def to_chat(body: CountTokensRequest) -> MessagesChat:
    """Return the chat that a request becomes.

    Raises:
        ApiError: the chat path refuses a field.
    """
    fields = {
        **(_sampling_fields(body) if isinstance(body, MessagesRequest) else {}),
        **_tool_fields(body),
        "model": body.model,
        "messages": to_messages(body.system, body.messages),
        "response_format": _response_format(body),
        "reasoning_effort": body.output_config.effort if body.output_config else None,
        "chat_template_kwargs": {**_thinking(body), **(body.chat_template_kwargs or {})},
        "notes": body.given(FieldClass.BOOKKEEPING),
    }
    if body.messages[-1].role == "assistant":
        fields |= {"add_generation_prompt": False, "continue_final_message": True}
    return make_chat(MessagesChat, fields)


def to_messages(system: TextOrBlocks | None, given: Iterable[Message]) -> list[ChatMessage]:
    """Return the messages of a chat.

    Consecutive messages of one role are one, as Anthropic has it. A message of the user with
    results of tools becomes several: one for each result, and one for each text between them.
    """
    messages: list[ChatMessage] = []
    if system:
        _last(messages, "system")["content"] = _parts(system)
    for message in given:
        last = _last(messages, message.role)
        if isinstance(message.content, str):
            last["content"] += _parts(message.content)
            continue
        for block in message.content:
            _add_block(messages, message.role, block)
    return [_simplest(message) for message in messages if _says_anything(message)]


def _last(messages: list[ChatMessage], role: str) -> ChatMessage:
    """Return the last message, or a new one if the last is not of this role."""
    if not messages or messages[-1]["role"] != role:
        messages.append({"role": role, "content": []})
    return messages[-1]


def _add_block(messages: list[ChatMessage], role: str, block: Any) -> None:
    match block:
        case TextBlock(text=text):
            _last(messages, role)["content"] += _parts(text)
        case ThinkingBlock(thinking=thinking):
            last = _last(messages, role)
            last["reasoning"] = last.get("reasoning", "") + thinking
        case ToolUseBlock():
            _last(messages, role).setdefault("tool_calls", []).append(_call(block))
        case ToolResultBlock(tool_use_id=tool_use_id, content=content):
            messages.append(
                {"role": "tool", "tool_call_id": tool_use_id, "content": _parts(content or "")}
            )


def _call(block: ToolUseBlock) -> dict[str, Any]:
    arguments = json.dumps(block.input, ensure_ascii=False)
    function = {"name": block.name, "arguments": arguments}
    return {"id": block.id, "type": "function", "function": function}


def _parts(content: TextOrBlocks) -> list[dict[str, str]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    texts = [block.text for block in content if isinstance(block, TextBlock)]
    return [{"type": "text", "text": text} for text in texts]


def _says_anything(message: ChatMessage) -> bool:
    """Return False for an empty message of the user, as can be left before tool results."""
    return message["role"] != "user" or bool(message["content"])


def _simplest(message: ChatMessage) -> ChatMessage:
    """Return the message with a single text as a string, which every chat template can write."""
    match message["content"]:
        case [{"text": text}]:
            return {**message, "content": text}
        case []:
            return {**message, "content": None if message["role"] == "assistant" else ""}
    return message


def _sampling_fields(body: MessagesRequest) -> dict[str, Any]:
    return {
        **body.passed_on,
        "stream": body.stream,
        "max_tokens": body.max_tokens,
        "stop": body.stop_sequences,
    }


def _tool_fields(body: CountTokensRequest) -> dict[str, Any]:
    tools = [_tool(tool) for tool in body.tools or () if isinstance(tool, ClientTool)]
    choice = body.tool_choice
    return {
        "tools": tools or None,
        "tool_choice": _tool_choice(choice) if choice else None,
        "parallel_tool_calls": not (choice and choice.disable_parallel_tool_use),
    }


def _tool(tool: ClientTool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": tool.strict,
    }
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> str | dict[str, Any]:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type


def _response_format(body: CountTokensRequest) -> dict[str, Any] | None:
    asked = (body.output_config and body.output_config.format) or body.output_format
    if not asked:
        return None
    schema = {"name": "output", "schema": asked.json_schema}
    return {"type": "json_schema", "json_schema": schema}


def _thinking(body: CountTokensRequest) -> dict[str, bool]:
    """Return the template variable that turns reasoning on or off, if the request sets it."""
    kind = body.thinking.type if body.thinking else None
    return {"enable_thinking": kind == "enabled"} if kind in ("enabled", "disabled") else {}
