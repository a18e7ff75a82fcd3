"""``minimal-vllm view``: watch an engine in the browser, live or from a trace."""

import asyncio
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from minimal_vllm.cli.options import FieldOption, SectionedCommand, field_options, given_options
from minimal_vllm.cli.serve import (
    NOT_FOR_A_SERVER,
    address_of,
    import_server,
    run_service,
)
from minimal_vllm.cli.trace import begin_traces, open_writers, trace_options
from minimal_vllm.config import EngineConfig
from minimal_vllm.model.fetch import fetched_model
from minimal_vllm.server.config import ServerConfig
from minimal_vllm_lab.commands.trace import TRACE
from minimal_vllm_lab.view.extension import View
from minimal_vllm_lab.view.traffic_settings import TrafficSettings

if TYPE_CHECKING:
    from socket import socket

    from minimal_vllm.server.async_engine import AsyncEngine
    from minimal_vllm.server.pace import PaceState

SMALL = {
    "num_gpu_blocks_override": 32,
    "max_model_len": 256,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 48,
}
"""Default options of the demo engine: so small that it runs out of blocks within seconds."""


TALKER = "smollm2"
"""Default model if it has been fetched."""
LIVE_ONLY = ("model", "trace", "steps_per_second", "tour", "beside")
"""Options that are no fields of a configuration, and have no effect on a trace."""


@trace_options
@field_options(EngineConfig, without=NOT_FOR_A_SERVER, defaults=SMALL)
@field_options(TrafficSettings, heading="Demo traffic")
@click.command(cls=SectionedCommand, short_help="Watch the engine at work, in the browser.")
@click.argument("traces", metavar="[TRACE [TRACE]]", nargs=-1, type=TRACE)
@click.option(
    "--model",
    help="The model to run. Default: smollm2 if it has been fetched, else the built-in model.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="The port. Default: a free port."
)
@click.option(
    "--steps-per-second",
    type=click.FloatRange(min=0.02, max=1000),
    default=4.0,
    show_default=True,
    help="Initial speed of the engine.",
)
@click.option(
    "--tour/--no-tour",
    default=True,
    show_default=True,
    help="Let the first viewer begin with a tour, for which the engine waits.",
)
@click.option(
    "--beside",
    metavar="OPTION=VALUE",
    multiple=True,
    help="Show a second engine beside the first, which differs in this engine option. Can be given "
    "several times.",
)
@click.option("--browser/--no-browser", default=True, help="Open the page in a browser.")
@click.pass_context
def view(ctx: click.Context, /, traces: tuple[Path, ...], browser: bool, **_: Any) -> None:
    """Show an engine that serves demo traffic, or replay TRACE, a file recorded by --trace.

    Two traces are shown side by side, at the same time since their beginning.
    """
    import_server("view")
    from minimal_vllm.server.http_server import bind

    if len(traces) > 2:
        raise click.UsageError(f"the view shows at most two traces, not {len(traces)}.")
    if traces:
        _reject_engine_options(ctx)
    show = _replay if traces else _live
    show(ctx, lambda: bind(ctx.params["host"], ctx.params["port"]), browser)


def _live(ctx: click.Context, bind: Callable[[], "socket"], browser: bool) -> None:
    from minimal_vllm.server.log import log_to_stderr
    from minimal_vllm.server.run import make_service

    log_to_stderr()
    listener = bind()
    writers = open_writers(ctx)
    options = {**SMALL, **given_options(ctx, EngineConfig)}
    config = ServerConfig(host=ctx.params["host"], view=True)
    model = ctx.params["model"] or choose_model()
    view = _make_pair(ctx, config, model, options) if ctx.params["beside"] else View()
    service = make_service(config, model, writers, view, **options)
    begin_traces(writers, service.llm)
    view.make_traffic(TrafficSettings(**given_options(ctx, TrafficSettings)))
    view.pace.change(_first_pace(ctx))
    if ctx.params["tour"] and not ctx.params["beside"]:
        view.offer_tour()
    run_service(service, listener, lambda: _announce(listener, browser))


def _make_pair(
    ctx: click.Context, config: ServerConfig, model: str | None, options: dict[str, Any]
) -> View:
    """Load the second engine, and return the view of both.

    Raises:
        UsageError: ``--beside`` names no option of the engine, or a trace is to be recorded.
    """
    from minimal_vllm.server.run import make_service
    from minimal_vllm_lab.view.beside import PairView

    if ctx.params["trace"]:
        raise click.UsageError("--trace records one engine: leave out --beside.")
    labels: list[str] = []
    known = {
        each.name: each
        for each in ctx.command.params
        if isinstance(each, FieldOption) and each.owner is EngineConfig
    }
    other = dict(options)
    for text in ctx.params["beside"]:
        name, separator, value = text.partition("=")
        name = name.strip("-").replace("-", "_")
        if not separator or name not in known:
            raise click.UsageError(
                f"--beside takes an option of the engine and its value, such as "
                f"enable-prefix-caching=false, not {text!r}."
            )
        option = known[name]
        other[name] = option.type_cast_value(ctx, (value,) if option.multiple else value)
        shown = (
            value if value.startswith("{") else value.rpartition(":")[2]
        )  # JSON, or FILE.py:CLASS
        labels.append(f"{name}={shown}")
    second = View()
    service = make_service(config, model, (), second, **other)
    second.pace.change(_first_pace(ctx))
    engine = cast("AsyncEngine", service.engine)  # it is in this process
    return PairView(second, engine, ("as given", ", ".join(labels)))


def _first_pace(ctx: click.Context) -> "PaceState":
    from minimal_vllm.server.pace import PaceState

    return PaceState(interval=1 / ctx.params["steps_per_second"])


def choose_model() -> str | None:
    """Return the model to show if none is given: one that can talk, if it has been fetched."""
    try:
        fetched_model(TALKER)
    except ValueError:
        return None
    return TALKER


def _replay(ctx: click.Context, bind: Callable[[], "socket"], browser: bool) -> None:
    from minimal_vllm_lab.view.replay import check_trace, replay_server

    paths: tuple[Path, ...] = ctx.params["traces"]
    for path in paths:
        click.echo(f"{path}: {check_trace(path):,} steps")
    listener = bind()
    listener.listen()  # a browser can connect from now on, and waits until the server runs
    _announce(listener, browser)
    asyncio.run(replay_server(*paths).serve([listener]))


def _reject_engine_options(ctx: click.Context) -> None:
    """Reject options of a live engine, which would have no effect on a trace.

    Raises:
        UsageError: such an option was given.
    """
    without_effect = [
        param.opts[0]
        for param in ctx.command.params
        if (isinstance(param, FieldOption) or param.name in LIVE_ONLY)
        and ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
    ]
    if without_effect:
        raise click.UsageError(f"{without_effect[0]} has no effect on a trace: leave it out.")


def _announce(listener: "socket", browser: bool) -> None:
    url = f"{address_of(listener)}/view"
    click.echo(f"The view is at {url} (Ctrl-C ends it)")
    if browser:
        webbrowser.open(url)
