"""Chat templates, which render a list of messages as the text of a prompt.

A template is a program that comes with a model. It runs in jinja2's sandbox, with the functions and
variables that Hugging Face defines:
https://huggingface.co/docs/transformers/chat_templating_writing
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from jinja2 import Template, TemplateError, UndefinedError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minimal_vllm.text.content_format import ContentFormat
from minimal_vllm.text.messages import (
    MessageForm,
    in_forms,
    plain,
    preferred_form,
)
from minimal_vllm.text.tokenizer import Tokenizer, read_json

CONTINUE_HERE = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marker of the end of the final message. A template that trims messages drops its space."""


class ChatTemplate:
    """A model's chat template, rendered as by transformers' ``apply_chat_template``.

    Messages may also have the form of OpenAI's API: content may be a list of texts, and the
    arguments of a tool call may be a JSON string. They are passed to the template in the form that
    it seems to be written for. If it fails, it is rendered again with other forms.

    Args:
        sources: a template, or several templates by name. ``tool_use``, if there is one, renders
            prompts with tools; ``default`` renders all others.
        special_tokens: variables of the template, such as ``bos_token``.

    Attributes:
        sources: source text of each template, by name.

    Raises:
        ValueError: a template has a syntax error.
    """

    def __init__(
        self, sources: str | Mapping[str, str], special_tokens: Mapping[str, str] | None = None
    ) -> None:
        self.sources = {"default": sources} if isinstance(sources, str) else dict(sources)
        self._templates = {name: _compile(source) for name, source in self.sources.items()}
        self._special_tokens = dict(special_tokens or {})

    @property
    def source(self) -> str:
        """The default template, or the first one if none is called so."""
        return self.sources.get("default", next(iter(self.sources.values()), ""))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_content_format: ContentFormat = "auto",
        **variables: Any,
    ) -> str:
        """Return the text of the prompt, to be encoded with ``add_special_tokens=False``.

        Args:
            messages: dictionaries with ``role`` and usually ``content``.
            add_generation_prompt: whether to end with the header of the assistant's next message.
            continue_final_message: whether to leave the last message open, to be continued.
            tools: JSON schemas of functions that the model may call.
            chat_template_content_format: form of the messages' content in the template.
            variables: other variables of the template, such as ``enable_thinking``.

        Raises:
            ValueError: the messages are malformed, the template rejects them, or there is no such
                content format.
        """
        if continue_final_message and add_generation_prompt:
            raise ValueError(
                "continue_final_message and add_generation_prompt exclude each other: set "
                "add_generation_prompt=False"
            )
        compiled = self._choose(tools)
        form = _form(compiled, chat_template_content_format)
        variables = {
            **self._special_tokens,
            "documents": None,
            **plain(variables),
            "tools": plain(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        failure: Exception | None = None
        for chat in in_forms(messages, form):
            final_text = _mark_final_text(chat[-1]) if continue_final_message else ""
            try:
                text = compiled.template.render(**variables, messages=chat)
            except (TypeError, UndefinedError) as error:  # of another form, it may know more
                failure = failure or error
            except Exception as error:  # the template is a program and may fail in any way
                failure = error
                break
            else:
                return _cut_at_mark(text, final_text) if continue_final_message else text
        raise ValueError(f"the chat template rejects these messages: {failure}") from failure

    def _choose(self, tools: object) -> "_Compiled":
        if tools is not None and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" in self._templates:
            return self._templates["default"]
        raise ValueError(
            f"none of the model's chat templates ({', '.join(sorted(self._templates))}) is named "
            "'default': give a template as a file"
        )


def load_chat_template(tokenizer: Tokenizer, given: str | None = None) -> ChatTemplate | None:
    """Return the user's chat template, or else the model's own; None if there is neither.

    Args:
        tokenizer: tokenizer of the model. The template is looked up in its folder, in this order:
            ``chat_template.jinja`` (with more in ``additional_chat_templates/``), the entry in
            ``tokenizer_config.json``, ``chat_template.json``. The tokenizer's special tokens become
            variables of the template.
        given: the user's template, or the path of a file that holds one.

    Raises:
        ValueError: ``given`` is neither, or a template has a syntax error.
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
        return dict(map(_named_source, sources))
    return str(sources)


def _named_source(entry: object) -> tuple[str, str]:
    match entry:
        case {"name": str(name), "template": str(source)}:
            return name, source
    raise ValueError(f"chat_template must list objects with a name and a template, not {entry!r}")


def _given_source(given: str) -> str:
    if "{" in given or "\n" in given:
        return given
    path = Path(given)
    if not path.is_file():
        raise ValueError(f"{given!r} is neither a chat template nor a file that holds one")
    return path.read_text(encoding="utf-8")


class _Generation(Extension):
    """The ``{% generation %}`` block, which marks the assistant's text; rendered unchanged."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


@dataclass(frozen=True, slots=True)
class _Compiled:
    template: Template
    form: MessageForm


def _compile(source: str) -> _Compiled:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return _Compiled(environment.from_string(source), preferred_form(environment.parse(source)))
    except TemplateError as error:
        raise ValueError(f"the chat template is not valid Jinja: {error}") from error


def _form(compiled: _Compiled, content_format: ContentFormat) -> MessageForm:
    """Return the form of messages in a template, with its content in the format that is asked."""
    if content_format not in get_args(ContentFormat):
        raise ValueError(
            f"chat_template_content_format should be one of {', '.join(get_args(ContentFormat))}, "
            f"not {content_format!r}"
        )
    if content_format == "auto":
        return compiled.form
    return replace(compiled.form, content=content_format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return ``value`` as JSON; unlike jinja2's own filter, without escaping for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format_: str) -> str:
    return datetime.now().strftime(format_)


def _mark_final_text(message: dict[str, Any]) -> str:
    """Append the marker to a message's text, in place; return the text without the marker."""
    content = message.get("content")
    if isinstance(content, list) and content:
        text = str(content[-1]["text"])
        content[-1]["text"] = text + CONTINUE_HERE
        return text
    if not isinstance(content, str):
        raise ValueError("continue_final_message needs a final message with text to continue")
    message["content"] = content + CONTINUE_HERE
    return content


def _cut_at_mark(text: str, final_text: str) -> str:
    """Return the rendered text up to the marker, trimmed if the template trims messages."""
    mark = CONTINUE_HERE.strip()
    if mark not in text or final_text.strip() not in text:
        raise ValueError(
            "continue_final_message does not work with this chat template: it changes the message"
        )
    end = text.rindex(mark)
    trimmed = not text.startswith(CONTINUE_HERE, end)
    return text[:end].rstrip() if trimmed else text[:end]
