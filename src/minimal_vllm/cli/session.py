"""What ``generate`` and ``chat`` share: from options to a running model, and text as it comes."""

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
from minimal_vllm.trace.step_record import Observer

if TYPE_CHECKING:
    from minimal_vllm.llm import LLM

WITHOUT_EFFECT = frozenset({"seed", "scheduling_policy"})
"""Engine options that would change nothing: --seed is the requests', and all have one priority."""

STREAM_ID = "stream"


@dataclass(frozen=True)
class Streamed:
    """A completion that the user has read already."""

    text: str
    num_tokens: int
    finish_reason: str
    """``"abort"`` if it was stopped before its end."""


def load_llm(ctx: click.Context, observers: Sequence[Observer]) -> "LLM":
    """Load the model that the command line asks for, which imports torch.

    The sampling options are checked first, so that a mistake costs no waiting.
    """
    _merge(ctx, {})
    return make_llm(ctx, observers, **given_options(ctx, EngineConfig))


def sampling_params(ctx: click.Context, llm: "LLM") -> SamplingParams:
    """What the command line asks for; else what the model does; else the command's defaults."""
    return _merge(ctx, llm.built.files.generation_config.sampling)


def _merge(ctx: click.Context, model_choice: Mapping[str, Any]) -> SamplingParams:
    given = given_options(ctx, SamplingParams)
    return SamplingParams(**{"max_tokens": ctx.params["max_tokens"], **model_choice, **given})


def stream(
    llm: "LLM",
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    stopped: Callable[[], bool] = lambda: False,
) -> Streamed:
    """Print one completion as it is generated.

    Args:
        llm: idle.
        prompt_token_ids: what to complete.
        params: with ``n = 1``.
        stopped: asked before each step whether to end early.

    Raises:
        StepFailure: a step could not be computed.
    """
    engine = llm.engine
    engine.add_request(STREAM_ID, prompt_token_ids, params, output_kind=OutputKind.DELTA)
    pieces: list[str] = []
    num_tokens, ended = 0, None
    while ended is None:
        outputs = [engine.abort(STREAM_ID)] if stopped() else engine.step()
        for completion in (each for output in outputs if output for each in output.outputs):
            click.echo(completion.text, nl=False)
            pieces.append(completion.text)
            num_tokens += len(completion.token_ids)
            ended = completion if completion.finish_reason is not None else None
    click.echo()
    if ended.finish_reason == "error":
        raise StepFailure(f"the engine failed: {ended.stop_reason}")
    return Streamed("".join(pieces), num_tokens, str(ended.finish_reason))
