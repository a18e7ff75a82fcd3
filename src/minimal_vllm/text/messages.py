"""Converting messages to the form that a chat template expects.

In OpenAI's API, a message's content may be a list of parts, and the arguments of a tool call are a
JSON string. Templates differ in what they can read:

- Most expect the content as one text. Some iterate over its parts.
- Most expect the arguments as an object. Some concatenate them with other text, as a string.
- Most expect some text in every message. Some test whether the content next to tool calls is none.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jinja2 import nodes

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Keys under which a message may carry its reasoning, in order of precedence. Templates read the
first, some the second."""

MAX_DEPTH = 100
"""Maximum nesting of arguments that are passed as an object, because template filters recurse."""


@dataclass(frozen=True, slots=True)
class MessageForm:
    """Form of the messages that a template gets."""

    content: Literal["string", "as given", "openai"] = "string"
    """Form of a content. ``string``: one text. ``as given``: one text, or a list of parts where the
    message has one. ``openai``: a list of parts."""
    none_beside_calls: bool = False
    """Whether absent content next to tool calls becomes None; otherwise it becomes empty text."""
    arguments: Literal["object", "string", "any object"] = "object"
    """Form of a tool call's arguments. ``object``: an object; text that isn't a JSON object stays a
    string. ``string``: a JSON string. ``any object``: an object; text that isn't a JSON object
    becomes the value of a key ``arguments``."""


def preferred_form(template: nodes.Template) -> MessageForm:
    """Return the form that a template seems to be written for."""
    tests = (test.node for test in template.find_all(nodes.Test) if test.name == "none")
    loops = (loop.iter for loop in template.find_all(nodes.For))
    return MessageForm(
        content="as given" if any(map(_is_content, loops)) else "string",
        none_beside_calls=any(map(_is_content, tests)),
    )


def _is_content(node: nodes.Node) -> bool:
    """Return whether an expression is a message's content, or a variable named after it."""
    match node:
        case nodes.Filter(node=nodes.Expr() as inner):
            return _is_content(inner)
        case nodes.Getattr(attr="content") | nodes.Getitem(arg=nodes.Const(value="content")):
            return True
        case nodes.Name(name=name):
            return name.endswith("content")
    return False


def in_forms(
    messages: Sequence[Mapping[str, Any]], preferred: MessageForm
) -> Iterator[list[dict[str, Any]]]:
    """Yield copies of the messages in the preferred form, then in other forms.

    Lists that may stay as given become texts in the other forms. Null values are left out, because
    most templates don't expect them.

    Raises:
        ValueError: the messages are malformed, or have content other than text.
    """
    contents = [preferred]
    if preferred.content == "as given":
        contents.append(replace(preferred, content="string"))
    previous: list[list[dict[str, Any]]] = []
    for form in contents:
        for arguments in ("object", "string", "any object"):
            chat = _in_form(messages, replace(form, arguments=arguments))
            if chat not in previous:
                yield chat
                previous.append(chat)


def _in_form(messages: Sequence[Mapping[str, Any]], form: MessageForm) -> list[dict[str, Any]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError("messages should be a list of at least one message")
    chat = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {i} should be an object with a role, not {message!r}")
        chat.append(_message_in_form(i, message, form))
    return chat


def _message_in_form(i: int, message: Mapping[str, Any], form: MessageForm) -> dict[str, Any]:
    has_calls = bool(message.get("tool_calls"))
    absent = None if form.none_beside_calls and has_calls else ""
    present: dict[str, Any] = {
        key: value for key, value in message.items() if value is not None or key == "content"
    }
    if present.get("content") is None:
        present.pop("content", None)
        if message["role"] == "assistant":
            present["content"] = absent
    reasoning = next((present[key] for key in REASONING_FIELDS if key in present), None)
    if reasoning is not None:
        present = {"thinking": reasoning, **present, "reasoning_content": reasoning}
    present = plain(present)
    if "content" in present:
        present["content"] = _content_in_form(i, present["content"], form)
    calls = present.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        _convert_arguments(i, call, form)
    return present


def _content_in_form(i: int, content: Any, form: MessageForm) -> Any:
    """Return the content of message ``i``; what is neither a text nor a list stays as it is."""
    if isinstance(content, str) and form.content == "openai":
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        return content
    texts = [_text(i, part) for part in content]
    if form.content == "string":
        return "\n".join(texts)
    return [{"type": "text", "text": text} for text in texts]


def plain(value: Any) -> Any:
    """Return a copy made of JSON types only, so that a template gets no methods to call."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"a chat template accepts only JSON values: {error}") from error


def _text(i: int, part: Any) -> str:
    """Return the text of one part of message ``i``'s content."""
    match part:
        case str(text) | {"type": "text", "text": str(text)}:
            return text
        case {"type": "refusal", "refusal": str(text)}:
            return text
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise ValueError(
        f"message {i} has content of type {kind!r}; only text is supported, as "
        "{'type': 'text', 'text': …}"
    )


def _convert_arguments(i: int, call: Any, form: MessageForm) -> None:
    """Convert the arguments of one of message ``i``'s tool calls, in place."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise ValueError(f"message {i} has a tool call that is {call!r}, but should be an object")
    arguments = function.get("arguments")
    if form.arguments == "string":
        if not isinstance(arguments, str):
            function["arguments"] = json.dumps(arguments or {}, ensure_ascii=False)
        return
    if isinstance(arguments, str):
        arguments = parse_arguments(arguments)
        if isinstance(arguments, str) and form.arguments == "any object":
            arguments = {"arguments": arguments}
        function["arguments"] = arguments


def parse_arguments(text: str) -> dict[str, Any] | str:
    """Return the arguments of a call as an object, or the text itself if it isn't a JSON object.

    A model may write anything, or be cut off at its token limit, and the conversation must still be
    able to continue.
    """
    if not text.strip():
        return {}
    if _depth(text) > MAX_DEPTH:
        return text
    try:
        parsed = json.loads(text)
        json.dumps(parsed, ensure_ascii=False).encode()  # fails for unpaired surrogates
    except ValueError:
        return text
    return parsed if isinstance(parsed, dict) else text


def _depth(text: str) -> int:
    """Return an upper bound of the nesting depth of a JSON text."""
    depth = deepest = 0
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest
