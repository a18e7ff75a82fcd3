"""The option ``--trace`` of commands that run an engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from minimal_vllm.trace.facts import engine_facts
from minimal_vllm.trace.step_record import Observer
from minimal_vllm.trace.writer import TraceWriter

if TYPE_CHECKING:
    from minimal_vllm.llm import LLM


def trace_options(command: click.Command) -> click.Command:
    """Decorate a command with ``--trace`` and ``--trace-max-mb``."""
    command.params += [
        click.Option(
            ["--trace"],
            metavar="FILE",
            type=click.Path(dir_okay=False, path_type=Path),
            help="File to record each step of the engine in; 'minimal-vllm view FILE' shows it.",
        ),
        click.Option(
            ["--trace-max-mb"],
            type=click.IntRange(min=1),
            default=256,
            show_default=True,
            help="Maximum size of the trace file in megabytes. The command continues beyond it.",
        ),
    ]
    return command


def open_writers(ctx: click.Context) -> list[TraceWriter]:
    """Return the observer that writes the trace, if one is asked for, in a list.

    The file is closed with the command.

    Raises:
        OSError: the file can't be written.
    """
    path = _path(ctx)
    return [_open(ctx, path)] if path else []


def open_writers_of(ctx: click.Context, names: Sequence[str]) -> dict[str, TraceWriter]:
    """Return an observer for each name that writes a trace to FILE-NAME; none without ``--trace``.

    Raises:
        OSError: a file can't be written.
    """
    path = _path(ctx)
    if path is None:
        return {}
    return {name: _open(ctx, path.with_stem(f"{path.stem}-{name}")) for name in names}


def _path(ctx: click.Context) -> Path | None:
    path: Path | None = ctx.params["trace"]
    is_bounded = ctx.get_parameter_source("trace_max_mb") is not ParameterSource.DEFAULT
    if path is None and is_bounded:
        raise click.UsageError("--trace-max-mb needs --trace.")
    return path


def _open(ctx: click.Context, path: Path) -> TraceWriter:
    writer = TraceWriter(path, ctx.params["trace_max_mb"] * 10**6)
    ctx.call_on_close(writer.close)
    return writer


def make_llm(ctx: click.Context, observers: Sequence[Observer] = (), **options: Any) -> "LLM":
    """Load a model, and record its steps if the command line asks for it. Imports torch.

    Raises:
        OSError: the trace can't be written.
        ValueError: as in ``LLM``.
    """
    from minimal_vllm.llm import LLM

    writers = open_writers(ctx)
    llm = LLM(observers=[*observers, *writers], **options)
    begin_traces(writers, llm)
    return llm


def begin_traces(writers: list[TraceWriter], llm: "LLM") -> None:
    """Write the headers of the traces, which describe the engine."""
    tokenizer = llm.built.files.tokenizer
    for writer in writers:
        facts = engine_facts(llm.config, llm.built)
        writer.begin(facts, tokenizer.token_text if tokenizer else None)
