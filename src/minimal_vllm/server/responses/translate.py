"""Translating a request of ``/v1/responses`` to one of the chat path."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from minimal_vllm.server.api_model import FieldClass
from minimal_vllm.server.chat.other_apis import TranslatedChat, make_chat
from minimal_vllm.server.responses.functions import FunctionPath, declared_functions
from minimal_vllm.server.responses.input_items import (
    FunctionCall,
    FunctionCallOutput,
    InputMessage,
    Item,
    ReasoningItem,
    RefusalContent,
    TextContent,
    TextOrContents,
)
from minimal_vllm.server.responses.request import (
    AllowedTools,
    FunctionTool,
    NamedFunction,
    ResponsesRequest,
    TextFormat,
)

ChatMessage = dict[str, Any]
"""A message of ``/v1/chat/completions``."""


class ResponsesChat(TranslatedChat):
    """The chat that a request of ``/v1/responses`` becomes."""

    client_fields: ClassVar[Mapping[str, str]] = {
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "reasoning_effort": "reasoning.effort",
        "response_format": "text.format",
        "response_format.json_schema.schema": "text.format.schema",
        "tool_choice.function.name": "tool_choice.name",
    }


def to_chat(body: ResponsesRequest) -> ResponsesChat:
    """Return the chat that a request becomes.

    Raises:
        ApiError: the chat path refuses a field.
    """
    fields = {
        **body.passed_on,
        **_tool_fields(body),
        "model": body.model,
        "messages": to_messages(body.instructions, body.input),
        "stream": body.stream,
        "max_tokens": body.max_output_tokens,
        "stop": body.stop,
        "response_format": _response_format(body.text.format if body.text else None),
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "user": body.user,
        "notes": body.given(FieldClass.BOOKKEEPING),
    }
    return make_chat(ResponsesChat, fields)


def to_messages(instructions: str | None, given: str | Iterable[Item]) -> list[ChatMessage]:
    """Return the messages of a chat.

    Consecutive items of the assistant are one message, because they are one turn of the model: its
    reasoning, its text and its calls. So are the instructions and the system's and developer's
    messages at the beginning, because many chat templates know only one system message.
    """
    items = [InputMessage(role="user", content=given)] if isinstance(given, str) else given
    messages: list[ChatMessage] = []
    if instructions is not None:
        _extend(messages, "system", instructions)
    for item in items:
        match item:
            case InputMessage(role="user"):
                messages.append({"role": "user", "content": _parts(item.content)})
            case InputMessage(role="assistant"):
                _extend(messages, "assistant", item.content)
            case InputMessage():
                _extend(messages, "system", item.content)
            case ReasoningItem(text=text):
                _add_reasoning(_last(messages, "assistant"), text)
            case FunctionCall():
                _last(messages, "assistant").setdefault("tool_calls", []).append(_call(item))
            case FunctionCallOutput():
                content = _parts(item.output)
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
    return [{**message, "content": _simplest(message.get("content"))} for message in messages]


def _last(messages: list[ChatMessage], role: str) -> ChatMessage:
    """Return the last message, or a new one if the last is not of this role."""
    if not messages or messages[-1]["role"] != role:
        messages.append({"role": role})
    return messages[-1]


def _extend(messages: list[ChatMessage], role: str, content: TextOrContents) -> None:
    _last(messages, role).setdefault("content", []).extend(_parts(content))


def _add_reasoning(message: ChatMessage, text: str) -> None:
    earlier = message.get("reasoning")
    message["reasoning"] = f"{earlier}\n{text}" if earlier else text


def _call(item: FunctionCall) -> dict[str, Any]:
    function = {"name": _path(item).full_name, "arguments": item.arguments}
    return {"id": item.call_id, "type": "function", "function": function}


def _parts(content: TextOrContents) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_part(part) for part in content]


def _part(part: Any) -> dict[str, Any]:
    match part:
        case TextContent(text=text):
            return {"type": "text", "text": text}
        case RefusalContent(refusal=refusal):
            return {"type": "refusal", "refusal": refusal}
    raise AssertionError(f"{part!r} should have been refused")


def _simplest(parts: list[dict[str, Any]] | None) -> str | list[dict[str, Any]] | None:
    """Return a single text as a string, which every chat template can write."""
    match parts:
        case [{"type": "text", "text": str(text)}]:
            return text
    return parts


def _tool_fields(body: ResponsesRequest) -> dict[str, Any]:
    functions, choice = declared_functions(body.tools or ()), body.tool_choice
    chat_choice: Any = choice
    if isinstance(choice, NamedFunction):
        chat_choice = {"type": "function", "function": {"name": _path(choice).full_name}}
    elif isinstance(choice, AllowedTools):
        allowed = {_path(tool) for tool in choice.tools}
        functions = [(path, tool) for path, tool in functions if path in allowed]
        chat_choice = choice.mode
    return {
        "tools": [_tool(path, tool) for path, tool in functions] or None,
        "tool_choice": chat_choice,
        "parallel_tool_calls": body.parallel_tool_calls,
    }


def _path(named: NamedFunction | FunctionCall) -> FunctionPath:
    return FunctionPath(named.name, named.namespace)


def _tool(path: FunctionPath, tool: FunctionTool) -> dict[str, Any]:
    function = tool.model_dump(include={"description", "parameters", "strict"})
    return {"type": "function", "function": {"name": path.full_name, **function}}


def _response_format(text_format: TextFormat | None) -> dict[str, Any] | None:
    if text_format is None:
        return None
    if text_format.json_schema is None:
        return {"type": text_format.type}
    schema = {
        "name": text_format.name or "schema",
        "description": text_format.description,
        "schema": text_format.json_schema,
        "strict": text_format.strict,
    }
    return {"type": "json_schema", "json_schema": schema}
