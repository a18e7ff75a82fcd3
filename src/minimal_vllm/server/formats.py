"""Formats of a model's tool calls and reasoning, as recognized in its chat template."""

from dataclasses import dataclass
from typing import Literal

from minimal_vllm.server.config import ServerConfig

ToolCallFormat = Literal["hermes", "llama3_json", "openai"]
ReasoningFormat = Literal["qwen3", "deepseek_r1", "openai_gptoss"]


@dataclass(frozen=True, slots=True)
class Formats:
    """Formats of one model; None for a format that is not known."""

    tool_calls: ToolCallFormat | None = None
    reasoning: ReasoningFormat | None = None


def choose_formats(config: ServerConfig, template: str) -> Formats:
    """Return the formats that the options name, or else those that the chat template shows.

    Args:
        config: the server's options; ``none`` turns a format off.
        template: source of the chat template; empty if there is none.
    """
    tool_calls, reasoning = config.tool_call_parser, config.reasoning_parser
    if tool_calls is None:
        tool_calls = _tool_calls_in(template)
    if reasoning is None:
        reasoning = _reasoning_in(template)
    return Formats(
        tool_calls=None if tool_calls == "none" else tool_calls,
        reasoning=None if reasoning == "none" else reasoning,
    )


def _tool_calls_in(template: str) -> ToolCallFormat | None:
    """Return the format in which a template writes the calls of earlier messages."""
    if is_harmony(template):
        return "openai"
    source = template.replace("\\", "")  # quotes may be escaped
    if "<tool_call>" in source and '"arguments":' in source:
        # Qwen3-Coder and GLM use the same tag, with other contents.
        return None if "<function=" in source or "<arg_key>" in source else "hermes"
    is_llama = '"parameters":' in source and ("<|python_tag|>" in source or "ipython" in source)
    return "llama3_json" if is_llama else None


def _reasoning_in(template: str) -> ReasoningFormat | None:
    """Return the reasoning of a model whose template writes or strips reasoning in tags.

    If the template only strips it, the model always reasons.
    """
    if is_harmony(template):
        return "openai_gptoss"
    if "</think>" not in template:
        return None
    return "qwen3" if "<think>" in template else "deepseek_r1"


def is_harmony(template: str) -> bool:
    """Return whether a template writes messages on the channels of gpt-oss."""
    return "<|channel|>analysis<|message|>" in template
