"""``minimal-vllm chat``: hold a conversation in the terminal."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from minimal_vllm.cli.options import SectionedCommand, field_options
from minimal_vllm.cli.session import WITHOUT_EFFECT, load_llm, sampling_params, stream
from minimal_vllm.cli.summary import RunSummary
from minimal_vllm.cli.trace import trace_options
from minimal_vllm.config import EngineConfig
from minimal_vllm.demo import DEMO_MODEL_DIR, END_OF_TURN
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.server.formats import is_harmony
from minimal_vllm.server.harmony import HarmonyReader
from minimal_vllm.server.message import CallWriter, ContentReader, Reader

if TYPE_CHECKING:
    from minimal_vllm.llm import LLM

HELP = "/reset starts a new conversation; exit, quit or Ctrl-D ends; Ctrl-C stops an answer."
ENDINGS = {"exit", "quit", "/exit", "/quit", "/bye"}
"""Inputs that end the conversation, in small or capital letters."""


@trace_options
@field_options(EngineConfig, without={"skip_tokenizer_init", "max_logprobs", *WITHOUT_EFFECT})
@field_options(
    SamplingParams,
    without={"n", "logprobs", "prompt_logprobs", "detokenize"},
    defaults={"max_tokens": 512},
)
@click.command(cls=SectionedCommand, short_help="Talk with a model.")
@click.option("--system", metavar="TEXT", help="System message at the start of the conversation.")
@click.option(
    "--stats", is_flag=True, help="Print speed and use of the KV cache after each answer."
)
@click.pass_context
def chat(ctx: click.Context, /, system: str | None, stats: bool, **_: Any) -> None:
    """Talk with a model that has a chat template.

    /reset starts a new conversation, exit or Ctrl-D ends, Ctrl-C stops an answer.
    """
    summary = RunSummary()
    llm = load_llm(ctx, [summary] if stats else [])
    conversation = Conversation(llm, _params(ctx, llm), system)
    if sys.stdin.isatty():
        _note(HELP)
    for line in _lines():
        match line.strip():
            case "":
                pass
            case ending if ending.lower() in ENDINGS:
                return
            case "/reset":
                conversation.reset()
                _note("Started a new conversation.")
            case command if command.startswith("/") and " " not in command:
                _note(f"There is no command {command}. {HELP}")
            case message:
                summary.reset()
                conversation.answer(message)
                if stats:
                    _note(str(summary))


def _params(ctx: click.Context, llm: "LLM") -> SamplingParams:
    params = sampling_params(ctx, llm)
    if llm.config.model == str(DEMO_MODEL_DIR) and params.stop is None:
        return replace(params, stop=[END_OF_TURN])
    return params


class Conversation:
    """A conversation with a model.

    Args:
        llm: the model, without running requests.
        params: sampling parameters of the answers.
        system: system message, or None.

    Raises:
        ValueError: the model has no chat template, or its template rejects a system message.
    """

    def __init__(self, llm: "LLM", params: SamplingParams, system: str | None) -> None:
        self._llm = llm
        self._params = params
        self._max_len = llm.built.scheduler_config.max_model_len
        template = llm.text.chat_template
        self._is_harmony = template is not None and is_harmony(template.source)
        if self._is_harmony:  # its tags are special tokens
            self._params = replace(params, skip_special_tokens=False)
        self._system = [] if system is None else [{"role": "system", "content": system}]
        llm.render_chat([*self._system, {"role": "user", "content": "Hello"}])
        self.reset()

    def reset(self) -> None:
        """Remove all messages but the system message."""
        self._messages = list(self._system)

    def answer(self, message: str) -> None:
        """Print the model's answer and add both messages, or say that the message doesn't fit."""
        messages = [*self._messages, {"role": "user", "content": message}]
        prompt = self._llm.render_chat(messages)
        token_ids = self._llm.tokenizer.encode(prompt, add_special_tokens=False)
        if len(token_ids) >= self._max_len:
            _note(
                f"The conversation would have {len(token_ids):,} tokens, but its maximum is "
                f"{self._max_len:,}: write a shorter message, or start a new one with /reset."
            )
            return
        with _ctrl_c_as_flag() as pressed:
            answer = stream(self._llm, token_ids, self._params, pressed.is_set, self._make_reader())
        self._messages = [*messages, {"role": "assistant", "content": answer.text}]
        if answer.finish_reason == "length":
            is_full = len(token_ids) + answer.num_tokens >= self._max_len
            _note(
                f"The conversation has reached its maximum of {self._max_len:,} tokens: start a "
                f"new one with /reset."
                if is_full
                else f"The answer was cut off after {answer.num_tokens:,} tokens (--max-tokens)."
            )

    def _make_reader(self) -> Reader:
        """Return a reader that parts the reasoning of gpt-oss, whose tags are no text."""
        answer = ContentReader()
        return HarmonyReader(CallWriter(parallel=True), answer) if self._is_harmony else answer


@contextmanager
def _ctrl_c_as_flag() -> Iterator[Event]:
    """Turn Ctrl-C into an event, so that it interrupts no step; a second one raises."""
    pressed = Event()

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """Yield the lines that are typed or piped in."""
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_terminal:
        with suppress(ImportError):  # not on every platform
            import readline  # noqa: F401 - gives input() its editing keys and a history
    while True:
        try:
            yield input(">>> " if at_terminal else "")
        except EOFError:
            if at_terminal:
                click.echo()
            return
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            _note("\n" + HELP)


def _note(text: str) -> None:
    click.secho(text, dim=True, err=True)
