"""Models that reason before they answer, between ``<think>`` and ``</think>``."""

from typing import Literal

from minimal_vllm.server.message import MessageDelta, Reader, overlap

OPEN, CLOSE = "<think>", "</think>"

Reasoning = Literal["begun", "possible"]
"""As in ``StructuredOutputsParams``: whether the text begins within the reasoning, or may begin
with it."""

REASONING_PARSERS: dict[str, Reasoning] = {"qwen3": "possible", "deepseek_r1": "begun"}
"""What models do that their prompt leaves the choice. DeepSeek R1 always reasons, and may leave
out the opening tag."""


def expected_reasoning(parser: str, prompt: str, continued: str | None) -> Reasoning | None:
    """What to expect of the text behind a prompt; None: no reasoning.

    Args:
        parser: one of ``REASONING_PARSERS``.
        prompt: the template may end it with an opening tag, or with both, which says: don't.
        continued: the message that the text continues, if it does.
    """
    if continued is not None:
        if continued.rfind(OPEN) > continued.rfind(CLOSE):
            return "begun"
        return None if continued.strip() else REASONING_PARSERS[parser]
    if prompt.rstrip().endswith(OPEN):
        return "begun"
    return None if prompt.rstrip().endswith(CLOSE) else REASONING_PARSERS[parser]


class ReasoningReader(Reader):
    """Takes out the reasoning, and leaves the rest to another reader.

    Args:
        expected: what the text begins with.
        answer: reads what comes behind the reasoning.
    """

    def __init__(self, expected: Reasoning, answer: Reader) -> None:
        self._expected = expected
        self._answer = answer
        self._held = ""
        self._is_at_start = True
        self._is_reasoning = True

    def read(self, text: str, part: MessageDelta) -> None:
        """Put what the next piece of text says into ``part``."""
        text, self._held = self._held + text, ""
        if self._is_at_start:
            text = self._read_start(text)
        if self._is_reasoning:
            text = self._read_reasoning(text, part)
        if not self._is_reasoning:
            self._answer.read(text, part)

    def finish(self, part: MessageDelta) -> None:
        """Put what was held back into ``part``."""
        if self._is_at_start and self._expected == "possible":
            self._answer.read(self._held, part)
        elif self._is_reasoning:
            part.reasoning += self._held
        self._answer.finish(part)

    def _read_start(self, text: str) -> str:
        """The text without the opening tag; nothing, until it is clear whether it has one."""
        begin = text.lstrip()
        if OPEN.startswith(begin) and begin != OPEN:
            self._held = text
            return ""
        self._is_at_start = False
        self._is_reasoning = self._expected == "begun" or begin.startswith(OPEN)
        return begin.removeprefix(OPEN) if begin.startswith(OPEN) else text

    def _read_reasoning(self, text: str, part: MessageDelta) -> str:
        """What comes behind the reasoning."""
        if self._is_at_start:
            return ""
        reasoning, close, rest = text.partition(CLOSE)
        self._is_reasoning = not close
        if self._is_reasoning:
            certain = len(text) - overlap(text, CLOSE)
            reasoning, self._held = text[:certain], text[certain:]
        part.reasoning += reasoning
        return rest
