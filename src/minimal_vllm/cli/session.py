"""Functions of ``generate`` and ``chat``: load a model, and print text while it is generated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from minimal_vllm.cli.errors import StepFailure
from minimal_vllm.cli.options import given_options
from minimal_vllm.cli.trace import make_llm
from minimal_vllm.config import EngineConfig
from minimal_vllm.outputs import OutputKind
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.server.message import ContentReader, MessageDelta, Reader, TextDelta
from minimal_vllm.trace.step_record import Observer

if TYPE_CHECKING:
    from minimal_vllm.llm import LLM

WITHOUT_EFFECT = frozenset({"seed", "scheduling_policy"})
"""Engine options without effect here: --seed is for requests, which all have the same priority."""

STREAM_ID = "stream"


@dataclass(frozen=True)
class Streamed:
    """A completion that has been printed."""

    text: str
    """Text without the reasoning."""
    num_tokens: int
    finish_reason: str
    """Reason for the end; ``"abort"`` if it was stopped."""


def load_llm(ctx: click.Context, observers: Sequence[Observer]) -> "LLM":
    """Load the model that the command line names. Imports torch.

    Sampling options are checked first, so that a mistake is reported at once.
    """
    _merge(ctx, {})
    return make_llm(ctx, observers, **given_options(ctx, EngineConfig))


def sampling_params(ctx: click.Context, llm: "LLM") -> SamplingParams:
    """Return the command line's sampling parameters. Defaults: the model's, then the engine's."""
    return _merge(ctx, llm.built.files.generation_config.sampling)


def _merge(ctx: click.Context, model_choice: Mapping[str, Any]) -> SamplingParams:
    given = given_options(ctx, SamplingParams)
    return SamplingParams(**{"max_tokens": ctx.params["max_tokens"], **model_choice, **given})


def stream(
    llm: "LLM",
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    stopped: Callable[[], bool] = lambda: False,
    reader: Reader | None = None,
) -> Streamed:
    """Print one completion as it is generated.

    Args:
        llm: the model, without running requests.
        prompt_token_ids: tokens to complete.
        params: sampling parameters, with ``n = 1``.
        stopped: called before each step; ends the completion if it returns True.
        reader: parts the reasoning from the answer. Default: all text is the answer.

    Raises:
        StepFailure: a step could not be computed.
    """
    engine = llm.engine
    engine.add_request(STREAM_ID, prompt_token_ids, params, output_kind=OutputKind.DELTA)
    answer = Answer(reader or ContentReader())
    num_tokens, ended = 0, None
    while ended is None:
        outputs = [engine.abort(STREAM_ID)] if stopped() else engine.step()
        for completion in (each for output in outputs if output for each in output.outputs):
            answer.add(completion.text, is_last=completion.finish_reason is not None)
            num_tokens += len(completion.token_ids)
            ended = completion if completion.finish_reason is not None else None
    click.echo()
    if ended.finish_reason == "error":
        raise StepFailure(f"the engine failed: {ended.stop_reason}")
    return Streamed(answer.text, num_tokens, str(ended.finish_reason))


class Answer:
    """An answer that is printed as it grows, its reasoning dimmed and in lines of its own."""

    def __init__(self, reader: Reader) -> None:
        self.text = ""
        self._reader = reader
        self._is_reasoning = False

    def add(self, text: str, *, is_last: bool) -> None:
        """Print the next piece of the model's text."""
        part = MessageDelta()
        self._reader.read(text, part)
        if is_last:
            self._reader.finish(part)
        for each in part.parts:
            if not isinstance(each, TextDelta):
                continue  # a call of a tool, of which the prompt has none
            if self._is_reasoning and each.kind == "content":
                click.echo()
            self._is_reasoning = each.kind == "reasoning"
            click.secho(each.text, nl=False, dim=self._is_reasoning or None)
        self.text += part.content
