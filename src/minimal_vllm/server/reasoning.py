"""Reasoning before the answer, between ``<think>`` and ``</think>``."""

from collections.abc import Callable, Iterable
from typing import Literal

from minimal_vllm.server.message import MessageDelta, Reader, overlap

OPEN, CLOSE = "<think>", "</think>"

Reasoning = Literal["begun", "possible", "harmony"]
"""``begun``: the text begins inside the reasoning. ``possible``: it may begin with reasoning.
``harmony``: it is several messages, some of them reasoning; see ``harmony``. All are as in
``StructuredOutputsParams``."""

REASONING_PARSERS: dict[str, Reasoning] = {
    "qwen3": "possible",
    "deepseek_r1": "begun",
    "openai_gptoss": "harmony",
}
"""Expected reasoning of a model if its prompt doesn't decide it. DeepSeek R1 always reasons, and
may leave out the opening tag."""


def expected_reasoning(parser: str, prompt: str, continued: str | None) -> Reasoning | None:
    """Return the reasoning that the text after a prompt begins with; None if there is none.

    Args:
        parser: one of ``REASONING_PARSERS``.
        prompt: the rendered prompt. A template may end it with an opening tag, or with both tags,
            which asks the model not to reason.
        continued: text of the message that the model continues; None: it begins a message.
    """
    if continued is not None:
        if continued.rfind(OPEN) > continued.rfind(CLOSE):
            return "begun"
        return None if continued.strip() else REASONING_PARSERS[parser]
    if prompt.rstrip().endswith(OPEN):
        return "begun"
    return None if prompt.rstrip().endswith(CLOSE) else REASONING_PARSERS[parser]


class ReasoningTokens:
    """Counts the tokens of the reasoning that a text begins with, tags included.

    Args:
        expected: reasoning that the text begins with.
        token_bytes: returns the UTF-8 bytes of a token.
    """

    def __init__(self, expected: Reasoning, token_bytes: Callable[[int], bytes]) -> None:
        self._expected = expected
        self._token_bytes = token_bytes
        self._text = b""
        self._num_undecided = 0
        self._is_at_start = True
        self._is_over = False

    def count(self, token_ids: Iterable[int]) -> int:
        """Read the next tokens, and return the number of them that are known to be reasoning."""
        num_known = 0
        for token_id in token_ids:
            if self._is_over:
                break
            self._text += self._token_bytes(token_id)
            self._num_undecided += 1
            if self._is_at_start and not self._read_start():
                continue
            num_known += 0 if self._is_over else self._num_undecided
            self._num_undecided = 0
            self._is_over = self._is_over or CLOSE.encode() in self._text
            self._text = self._text[1 - len(CLOSE) :]
        return num_known

    def _read_start(self) -> bool:
        """Return whether it is clear what the text begins with."""
        begin = self._text.lstrip()
        if OPEN.encode().startswith(begin) and begin != OPEN.encode():
            return False
        self._is_at_start = False
        self._is_over = self._expected == "possible" and not begin.startswith(OPEN.encode())
        return True


class ReasoningReader(Reader):
    """Reader that splits off the reasoning, and passes the rest to another reader.

    Args:
        expected: reasoning that the text begins with.
        answer: reader of the text after the reasoning.
    """

    def __init__(self, expected: Reasoning, answer: Reader) -> None:
        self._expected = expected
        self._answer = answer
        self._held = ""
        self._is_at_start = True
        self._is_reasoning = True

    def read(self, text: str, part: MessageDelta) -> None:
        """Read the next piece of text, and add its content to ``part``."""
        text, self._held = self._held + text, ""
        if self._is_at_start:
            text = self._read_start(text)
        if self._is_reasoning:
            text = self._read_reasoning(text, part)
        if not self._is_reasoning:
            self._answer.read(text, part)

    def finish(self, part: MessageDelta) -> None:
        """Add the text that was held back to ``part``."""
        if self._is_at_start and self._expected == "possible":
            self._answer.read(self._held, part)
        elif self._is_reasoning:
            part.add_text("reasoning", self._held)
        self._answer.finish(part)

    def _read_start(self, text: str) -> str:
        """Return the text without its opening tag, or nothing while the tag may be incomplete."""
        begin = text.lstrip()
        if OPEN.startswith(begin) and begin != OPEN:
            self._held = text
            return ""
        self._is_at_start = False
        self._is_reasoning = self._expected == "begun" or begin.startswith(OPEN)
        return begin.removeprefix(OPEN) if begin.startswith(OPEN) else text

    def _read_reasoning(self, text: str, part: MessageDelta) -> str:
        """Read the reasoning, and return the text after it."""
        if self._is_at_start:
            return ""
        reasoning, close, rest = text.partition(CLOSE)
        self._is_reasoning = not close
        if self._is_reasoning:
            certain = len(text) - overlap(text, CLOSE)
            reasoning, self._held = text[:certain], text[certain:]
        part.add_text("reasoning", reasoning)
        return rest
