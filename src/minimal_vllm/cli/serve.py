"""``minimal-vllm serve``: serve a model over HTTP, with OpenAI's API."""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from minimal_vllm.cli.errors import Failure, StepFailure
from minimal_vllm.cli.options import field_options, given_options
from minimal_vllm.cli.trace import begin_traces, open_writers, trace_options
from minimal_vllm.cli.vllm_flags import VllmCommand, unsupported_options
from minimal_vllm.cluster.config import ClusterConfig
from minimal_vllm.config import EngineConfig
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.device.wake import wake_gpu
from minimal_vllm.garbage import frozen_garbage, without_collections
from minimal_vllm.server.config import ServerConfig
from minimal_vllm.vllm_arguments import ENGINE, SERVER

if TYPE_CHECKING:
    from socket import socket

    from minimal_vllm.llm import LLM
    from minimal_vllm.server.service import Service

NOT_FOR_A_SERVER = frozenset({"model", "skip_tokenizer_init"})
"""Engine options that ``serve`` lacks: the model is its argument, and it needs a tokenizer."""

SERVER_OPTIONS = frozenset(field.name for field in fields(ServerConfig))

KEY_VARIABLE = "MINIMAL_VLLM_API_KEY"


@trace_options
@field_options(EngineConfig, without=NOT_FOR_A_SERVER)
@field_options(ServerConfig, heading="Server")
@field_options(ClusterConfig, heading="Replicas, with --ray")
@click.option("--ray", is_flag=True, help="Serve with several engines, in a cluster of Ray.")
@unsupported_options(ENGINE, SERVER, without=SERVER_OPTIONS)
@click.command(cls=VllmCommand, short_help="Serve a model over HTTP, with OpenAI's API.")
@click.argument("model", required=False)
@click.pass_context
def serve(ctx: click.Context, /, model: str | None, **_: Any) -> None:
    """Serve MODEL (default: the built-in one) to clients of OpenAI's API.

    SIGTERM or Ctrl-C lets the running requests finish; a second one ends them.

    Options are those of 'vllm serve', in its syntax. An option of vLLM's that is not listed here is
    accepted at values that change nothing.
    """
    with without_collections():
        _serve(ctx, model)


def _serve(ctx: click.Context, model: str | None) -> None:
    config = _server_config(ctx)
    cluster = _cluster_config(ctx)
    options = given_options(ctx, EngineConfig)
    if cluster is None and options.get("device") != "cpu":
        wake_gpu()
    run = import_server("serve")
    from minimal_vllm.server.http_server import allow_many_connections, bind, check_certificate
    from minimal_vllm.server.log import log_to_stderr

    log_to_stderr()
    if cluster is not None:
        _serve_on_ray(ctx, cluster, config, options)
        return
    check_certificate(config)
    allow_many_connections()
    listener = bind(config.host, config.port)
    count = run.choose_num_processes(config, options.get("device", "auto"))
    if count:
        _serve_in_processes(ctx, config, listener, count, options)
        return
    writers = open_writers(ctx)
    service = run.make_service(config, model, writers, **options)
    begin_traces(writers, service.llm)
    summary = _summary(service.llm, service.model_names, config, listener, count)
    run_service(service, listener, lambda: click.echo("\n".join(summary)))


def _serve_in_processes(
    ctx: click.Context,
    config: ServerConfig,
    listener: "socket",
    count: int,
    options: dict[str, Any],
) -> None:
    """Run the engine in this process, and HTTP in ``count`` others."""
    from minimal_vllm.server.engine_client import EngineFailedError
    from minimal_vllm.server.processes.supervisor import Supervisor
    from minimal_vllm.server.run import load_engine

    supervisor, model = Supervisor(config, listener, count), ctx.params["model"]
    try:
        writers = open_writers(ctx)
        tokenizer = Path(options.get("tokenizer") or model or DEMO_MODEL_DIR)
        if tokenizer.exists():  # others may have to be downloaded
            supervisor.preload_tokenizer(tokenizer)
        loaded = load_engine(config, model, writers, **options)
        begin_traces(writers, loaded.llm)
        summary = _summary(loaded.llm, loaded.model_names, config, listener, count)
        supervisor.serve(loaded, lambda: click.echo("\n".join(summary)))
    except EngineFailedError as error:
        raise StepFailure(str(error)) from error
    finally:
        supervisor.close()


def _serve_on_ray(
    ctx: click.Context,
    cluster: ClusterConfig,
    config: ServerConfig,
    options: dict[str, Any],
) -> None:
    """Run the engines and the HTTP side in a cluster of Ray."""
    if open_writers(ctx):
        raise Failure("--trace records one engine: leave out --ray")
    try:
        from minimal_vllm.cluster.serve import serve_on_ray
    except ModuleNotFoundError as error:
        raise Failure(
            f"--ray needs {error.name}, which is not installed: pip install 'minimal-vllm[ray]'"
        ) from error
    rows = {
        "Model": ctx.params["model"] or "the built-in one",
        "Replicas": f"{cluster.replicas}, chosen by {cluster.routing} routing",
        "API key": "required" if config.api_key else "none",
        "Serving at": f"http://{config.host}:{config.port}",
    }
    summary = "\n".join(f"{label:<14}{value}" for label, value in rows.items())
    model = ctx.params["model"]
    try:
        with frozen_garbage():
            serve_on_ray(cluster, config, model, options, lambda: click.echo(summary))
    except (ConnectionError, RuntimeError) as error:
        raise Failure(f"Ray: {error}") from error


def import_server(command: str) -> ModuleType:
    """Import the server, which needs the packages of the extra ``server``.

    Returns:
        The module ``minimal_vllm.server.run``.

    Raises:
        Failure: a package is missing; the message says how to install it.
    """
    try:
        import_module("minimal_vllm.server.http_server")
        return import_module("minimal_vllm.server.run")
    except ModuleNotFoundError as error:
        raise Failure(
            f"{command} needs {error.name}, which is not installed: "
            "pip install 'minimal-vllm[server]'"
        ) from error


def run_service(service: "Service", listener: "socket", announce: Callable[[], None]) -> None:
    """Serve until a signal ends the server.

    Args:
        service: the model and its engine, not started yet.
        listener: a bound socket.
        announce: called when clients can connect.

    Raises:
        StepFailure: the engine died.
    """
    from minimal_vllm.server.engine_client import EngineFailedError
    from minimal_vllm.server.http_server import serve

    try:
        with frozen_garbage():
            asyncio.run(serve(service, listener, announce))
    except EngineFailedError as error:
        raise StepFailure(str(error)) from error


def address_of(listener: "socket", scheme: str = "http") -> str:
    """Return the URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{port}"


def _server_config(ctx: click.Context) -> ServerConfig:
    given = given_options(ctx, ServerConfig)
    key = os.environ.get(KEY_VARIABLE)
    return ServerConfig(**{"api_key": [key] if key else None, **given})


def _cluster_config(ctx: click.Context) -> ClusterConfig | None:
    """Return the options of replicas; None without ``--ray``.

    Raises:
        Failure: there are such options, but not ``--ray``.
    """
    given = given_options(ctx, ClusterConfig)
    if ctx.params["ray"]:
        return ClusterConfig(**given)
    if given:
        name = min(given).replace("_", "-")
        raise Failure(f"--{name} needs --ray, which serves with several engines")
    return None


def _formats(llm: "LLM", config: ServerConfig) -> dict[str, str]:
    """Return the summary's lines on the formats of tool calls and reasoning, and their source."""
    from minimal_vllm.server.formats import choose_formats

    template = llm.text.chat_template
    formats = choose_formats(config, template.source if template else "")
    rows = (
        ("Tool calls", formats.tool_calls, config.tool_call_parser),
        ("Reasoning", formats.reasoning, config.reasoning_parser),
    )
    return {
        label: name if given else f"{name}, as the chat template shows"
        for label, name, given in rows
        if name
    }


def _summary(
    llm: "LLM", names: Sequence[str], config: ServerConfig, listener: "socket", num_processes: int
) -> Iterator[str]:
    from minimal_vllm.engine.backends import backend_name
    from minimal_vllm.engine.sizing import count_fitting_tokens

    built = llm.built
    model = built.files.config
    backend = backend_name(llm.config.attention_backend, built.device)
    num_tokens = count_fitting_tokens(built.scheduler_config, built.num_blocks)
    block_size = llm.config.block_size
    url = address_of(listener, "https" if config.ssl_certfile else "http")
    rows = {
        "Model": ", ".join(names),
        "Parameters": f"{model.num_parameters:,} ({model.architecture})",
        "Context": f"{built.scheduler_config.max_model_len:,} tokens",
        "KV cache": f"{num_tokens:,} tokens ({built.num_blocks:,} blocks of {block_size})",
        "Runs": f"on {built.device}, in {str(built.dtype).removeprefix('torch.')}, "
        f"with {backend} attention{_ranks(llm.config.tensor_parallel_size)}",
        **_formats(llm, config),
        **(
            {"HTTP": f"in {_processes(num_processes)} beside the engine's"} if num_processes else {}
        ),
        "API key": "required" if config.api_key else "none",
        "Serving at": url,
    }
    if config.view:
        rows["View"] = f"{url}/view"
    for label, value in rows.items():
        yield f"{label:<14}{value}"


def _ranks(count: int) -> str:
    return f", in {count} processes that share the model" if count > 1 else ""


def _processes(count: int) -> str:
    return "a process" if count == 1 else f"{count} processes"
