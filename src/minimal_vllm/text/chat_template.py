"""Chat templates: from a list of messages to the text of a prompt.

A template is a program that comes with a model. It runs in jinja2's sandbox, in the environment
that Hugging Face defines: https://huggingface.co/docs/transformers/chat_templating_writing
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minimal_vllm.text.tokenizer import Tokenizer, read_json

CONTINUE_HERE = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of the final message. Whether the space survives tells if the template trims."""

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names for a message's reasoning; templates read the first, some the second."""


class ChatTemplate:
    """Renders messages as ``transformers``' ``apply_chat_template(tokenize=False)`` does.

    But, as vLLM does, it lets messages be as OpenAI's API has them: with a list of texts as
    content, and with a JSON string as the arguments of a tool call. Most templates know neither.

    Attributes:
        sources: template by name; ``default`` is used, or ``tool_use`` where tools are given.

    Raises:
        ValueError: if a template's syntax is wrong.
    """

    def __init__(
        self, sources: str | Mapping[str, str], special_tokens: Mapping[str, str] | None = None
    ) -> None:
        self.sources = {"default": sources} if isinstance(sources, str) else dict(sources)
        self._templates = {name: _compile(source) for name, source in self.sources.items()}
        self._special_tokens = dict(special_tokens or {})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt's text; it is to be encoded with ``add_special_tokens=False``.

        Args:
            messages: dictionaries with ``role`` and mostly ``content``.
            add_generation_prompt: end with the header of the assistant's next message.
            continue_final_message: leave the last message open, to be continued.
            tools: JSON schemas of functions that the model may call.
            variables: what else the template knows, such as ``enable_thinking``.

        Raises:
            ValueError: if the messages are malformed, or the template rejects them.
        """
        if continue_final_message and add_generation_prompt:
            raise ValueError(
                "continue_final_message leaves no place for a generation prompt: "
                "set add_generation_prompt=False with it"
            )
        chat = _checked(messages)
        final_text = _mark_final_text(chat[-1]) if continue_final_message else ""
        variables = {**self._special_tokens, "documents": None, **_plain(variables)}
        try:
            text = self._choose(tools).render(
                **variables,
                messages=chat,
                tools=_plain(tools),
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # the template is a program and may fail in any way
            raise ValueError(f"the chat template rejects these messages: {error}") from error
        return _cut_at_mark(text, final_text) if continue_final_message else text

    def _choose(self, tools: object) -> Template:
        if tools is not None and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" in self._templates:
            return self._templates["default"]
        raise ValueError(
            f"none of the model's chat templates ({', '.join(sorted(self._templates))}) is called "
            "default: give one as a file"
        )


def load_chat_template(tokenizer: Tokenizer, given: str | None = None) -> ChatTemplate | None:
    """The chat template beside a tokenizer, or the one that the user gives; None without one.

    Args:
        tokenizer: its special tokens are variables of the template. In its folder are looked for,
            in this order, ``chat_template.jinja`` (with more in ``additional_chat_templates/``),
            the entry in ``tokenizer_config.json``, and ``chat_template.json``.
        given: a template, or the path of a file that holds one.

    Raises:
        ValueError: if ``given`` is neither, or a template's syntax is wrong.
    """
    sources = _sources(tokenizer) if given is None else _given_source(given)
    return ChatTemplate(sources, tokenizer.special_tokens) if sources else None


def _sources(tokenizer: Tokenizer) -> str | dict[str, str]:
    folder = tokenizer.folder
    paths = {path.stem: path for path in (folder / "additional_chat_templates").glob("*.jinja")}
    if (folder / "chat_template.jinja").is_file():
        paths["default"] = folder / "chat_template.jinja"
    if paths:
        return {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
    sources = tokenizer.config.get("chat_template")
    if sources is None:
        sources = read_json(folder / "chat_template.json").get("chat_template", "")
    if isinstance(sources, list):
        return {entry["name"]: entry["template"] for entry in sources}
    return str(sources)


def _given_source(given: str) -> str:
    if "{" in given or "\n" in given:
        return given
    path = Path(given)
    if not path.is_file():
        raise ValueError(f"{given!r} is neither a chat template nor a file that holds one")
    return path.read_text(encoding="utf-8")


class _Generation(Extension):
    """The ``{% generation %}`` block, which marks what the assistant wrote: rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _compile(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ValueError(f"the chat template is not valid jinja: {error}") from error


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own filter, escapes nothing for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format_: str) -> str:
    return datetime.now().strftime(format_)


def _plain(value: Any) -> Any:
    """A copy made of JSON's types only: a template gets no object with methods to call."""
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise ValueError(f"a chat template takes only JSON values: {error}") from error


def _checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A copy of well-formed messages, without absent values, which templates mostly forget."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError("messages should be a list of at least one message")
    chat = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {i} should be an object with a role, not {message!r}")
        present = {key: value for key, value in message.items() if value is not None}
        reasoning = next((present[key] for key in REASONING_FIELDS if key in present), None)
        if reasoning is not None:
            present = {"thinking": reasoning, **present, "reasoning_content": reasoning}
        present = _plain(present)
        if isinstance(present.get("content"), list):
            present["content"] = "\n".join(_text(i, part) for part in present["content"])
        calls = present.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            _parse_arguments(i, call)
        chat.append(present)
    return chat


def _text(i: int, part: Any) -> str:
    """The text of one part of message ``i``'s content."""
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise ValueError(
            f"message {i} has content of the type {kind!r}; only texts are supported, as "
            "{'type': 'text', 'text': …}"
        )
    return str(part["text"])


def _parse_arguments(i: int, call: Any) -> None:
    """Makes the arguments of one of message ``i``'s tool calls an object, in place."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise ValueError(f"message {i} has a tool call that is {call!r}, but should be an object")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"message {i} has a tool call whose arguments are no JSON") from error


def _mark_final_text(message: dict[str, Any]) -> str:
    """Marks the end of a message's text, in place; returns the text without the mark."""
    content = message.get("content")
    if not isinstance(content, str):
        raise ValueError("continue_final_message needs a final message with text to continue")
    message["content"] = content + CONTINUE_HERE
    return content


def _cut_at_mark(text: str, final_text: str) -> str:
    """The rendered text up to the mark, trimmed where the template trimmed the message."""
    mark = CONTINUE_HERE.strip()
    if mark not in text or final_text.strip() not in text:
        raise ValueError(
            "continue_final_message does not work with this chat template: it changes the message"
        )
    place = text.rindex(mark)
    trimmed = not text.startswith(CONTINUE_HERE, place)
    return text[:place].rstrip() if trimmed else text[:place]
