"""Plan of the answers to one chat: the form of the text, and how it becomes a message."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from minimal_vllm.outputs import CompletionOutput
from minimal_vllm.sampling.grammar_source import grammar_source
from minimal_vllm.server.chat.request import ChatCompletionRequest
from minimal_vllm.server.errors import ApiError
from minimal_vllm.server.formats import Formats, ToolCallFormat
from minimal_vllm.server.harmony import AnalysisTokens, HarmonyReader
from minimal_vllm.server.message import CallWriter, ContentReader, MessageDelta, Reader
from minimal_vllm.server.reasoning import (
    Reasoning,
    ReasoningReader,
    ReasoningTokens,
    expected_reasoning,
)
from minimal_vllm.server.structured import Constraint, asked_constraint
from minimal_vllm.server.tools.declaration import Function
from minimal_vllm.server.tools.format import ToolFormat
from minimal_vllm.server.tools.harmony import Harmony
from minimal_vllm.server.tools.hermes import Hermes
from minimal_vllm.server.tools.json_calls import Llama3Json, RequiredCalls
from minimal_vllm.server.tools.named import NamedCall

TOOL_CALL_PARSERS: dict[ToolCallFormat, Callable[[Sequence[Function]], ToolFormat]] = {
    "hermes": Hermes,
    "llama3_json": Llama3Json,
    "openai": Harmony,
}
"""Formats of tool calls that a model makes by itself."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Plan for all answers to one chat."""

    constraint: Constraint | None
    tools: ToolFormat | None
    """Format of the calls; None: the text has no calls."""
    parallel: bool
    """True if a message may have several calls."""
    reasoning: Reasoning | None
    """Reasoning that the text begins with; None: it has none."""
    reason_of_calls: str
    """``finish_reason`` of a complete message that has calls."""

    @property
    def has_tags(self) -> bool:
        """True if the text may have tags, which are special tokens of some models."""
        return self.tools is not None or self.reasoning is not None

    def make_reader(self) -> Reader:
        """Make a reader for the text of one answer."""
        calls = CallWriter(self.parallel)
        if isinstance(self.tools, Harmony):
            return self.tools.make_reader(calls)
        answer = self.tools.make_reader(calls) if self.tools else ContentReader()
        if self.reasoning == "harmony":
            return HarmonyReader(calls, answer)
        return ReasoningReader(self.reasoning, answer) if self.reasoning else answer


class MessageReaders:
    """Reads the texts of all choices of one chat, each of which becomes a message.

    Args:
        dialogue: says how the texts are read.
        token_bytes: returns the bytes of a token.
    """

    def __init__(self, dialogue: Dialogue, token_bytes: Callable[[int], bytes]) -> None:
        self._dialogue = dialogue
        self._token_bytes = token_bytes
        self._readers: dict[int, Reader] = {}
        self._counters: dict[int, ReasoningTokens | AnalysisTokens] = {}
        self._have_calls: set[int] = set()

    def read(self, index: int, completion: CompletionOutput) -> MessageDelta:
        """Read the new text of a choice, and return what it adds to the choice's message."""
        if index not in self._readers:
            self._readers[index] = self._dialogue.make_reader()
        reader, delta = self._readers[index], MessageDelta()
        reader.read(completion.text, delta)
        if completion.finish_reason is not None:
            reader.finish(delta)
        if delta.calls:
            self._have_calls.add(index)
        return delta

    def count_reasoning(self, index: int, completion: CompletionOutput) -> int:
        """Return the number of reasoning tokens in the new output of a choice."""
        reasoning = self._dialogue.reasoning
        if reasoning is None:
            return 0
        if index not in self._counters:
            is_harmony = reasoning == "harmony"
            self._counters[index] = (
                AnalysisTokens(self._token_bytes)
                if is_harmony
                else ReasoningTokens(reasoning, self._token_bytes)
            )
        return self._counters[index].count(completion.token_ids)

    def finish_reason(self, index: int, completion: CompletionOutput) -> str | None:
        """Return why a choice has ended, with all of its text read; None if it goes on."""
        if completion.finish_reason == "stop" and index in self._have_calls:
            return self._dialogue.reason_of_calls
        return completion.finish_reason


def plan_dialogue(formats: Formats, body: ChatCompletionRequest, prompt: str) -> Dialogue:
    """Plan the answers to a chat.

    Args:
        formats: formats in which the model writes.
        body: the request.
        prompt: its rendered prompt.

    Raises:
        ApiError: the request contradicts itself, or the model's format isn't known.
    """
    tools = _choose_tools(formats, body)
    constraint = _choose_constraint(body, tools)
    reasoning = None
    if formats.reasoning is not None:
        continued = body.messages[-1].text if body.continue_final_message else None
        reasoning = expected_reasoning(formats.reasoning, prompt, continued)
    if constraint is not None:
        before = "harmony calls" if isinstance(tools, Harmony) else reasoning
        constraint = replace(constraint, params=replace(constraint.params, reasoning=before))
    return Dialogue(
        constraint,
        tools,
        parallel=body.parallel_tool_calls,
        reasoning=reasoning,
        reason_of_calls="stop" if isinstance(tools, NamedCall) else "tool_calls",
    )


def _choose_tools(formats: Formats, body: ChatCompletionRequest) -> ToolFormat | None:
    functions = [tool.function for tool in body.tools or ()]
    if not functions and body.tool_choice not in (None, "none", "auto"):
        raise ApiError(400, "tool_choice: there are no tools to choose from", param="tool_choice")
    match body.tool_choice:
        case "required":
            return RequiredCalls(functions, body.parallel_tool_calls)
        case "auto" | None if functions:
            if formats.tool_calls is None:
                raise ApiError(
                    400,
                    "tool_choice: auto needs the format of the model's calls, and its template "
                    "shows none that is known (--enable-auto-tool-choice and --tool-call-parser)",
                    param="tool_choice",
                )
            return TOOL_CALL_PARSERS[formats.tool_calls](functions)
        case "auto" | "none" | None:
            return None
    wanted = body.tool_choice.function.name
    chosen = next((function for function in functions if function.name == wanted), None)
    if chosen is None:
        raise ApiError(
            400,
            f"tool_choice: there is no tool {wanted!r} among tools",
            param="tool_choice.function.name",
        )
    return NamedCall(chosen)


def _choose_constraint(body: ChatCompletionRequest, tools: ToolFormat | None) -> Constraint | None:
    """Return what the text must match: calls of tools, or what the request asks for otherwise."""
    asked = asked_constraint(body.response_format, body.structured_outputs)
    if tools is None:
        return asked
    answer = None
    if asked is not None:
        answer = _grammar_of(asked)
    try:
        params = tools.constraint(answer)
    except (ValueError, TypeError, RecursionError) as error:
        raise ApiError(400, f"tools can't be used: {error}", param="tools") from error
    if params is None:
        return None
    schemas = {
        f"tools.{index}.function.parameters": tool.function.schema_of_arguments
        for index, tool in enumerate(body.tools or ())
        if tool.function.strict
    }
    return Constraint(params, "tools" if asked is None else asked.field, schemas)


def _grammar_of(asked: Constraint) -> str:
    """Return the grammar of an answer, as a part of a larger one."""
    if asked.params.grammar is not None:
        raise ApiError(
            400,
            "structured_outputs.grammar can't be combined with tools: set tool_choice to none",
            param="structured_outputs.grammar",
        )
    try:
        return grammar_source(asked.params)
    except (ImportError, ValueError, TypeError, RecursionError) as error:
        raise ApiError(400, f"{asked.field} can't be used: {error}", param=asked.field) from error
