"""Loading a model to serve, and putting a service together around it."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from minimal_vllm.engine.sizing import DEFAULT_BATCHED_TOKENS, choose_device
from minimal_vllm.llm import LLM
from minimal_vllm.metrics.engine_metrics import cache_settings
from minimal_vllm.server.async_engine import AsyncEngine
from minimal_vllm.server.config import ServerConfig
from minimal_vllm.server.extension import ServerExtension, load_extension
from minimal_vllm.server.metrics import Metrics
from minimal_vllm.server.served_model import ServedModel
from minimal_vllm.server.service import Service, choose_model_names
from minimal_vllm.trace.step_record import Observer

CORES_PER_PROCESS = 4
"""Cores of the machine for each HTTP process beside an engine on a GPU."""
MAX_PROCESSES = 4
"""Default maximum of HTTP processes: four speak faster than one GPU computes."""
MAX_TOKENS_ON_GPU = DEFAULT_BATCHED_TOKENS["cuda"]
"""Default of ``max_num_batched_tokens`` on any GPU. On a large one it is twice as many offline, but
a server's steps should be short."""


class ServedLLM(LLM):
    """A model for an ``EngineLoop``, which finishes its preparation while there are no requests."""

    _lazy = True


@dataclass(frozen=True)
class LoadedEngine:
    """A model that is loaded, and the metrics that watch its engine."""

    llm: LLM
    metrics: Metrics
    model_names: list[str]
    """Names by which clients may call the model; metrics use the first."""


@dataclass(frozen=True)
class LocalService(Service):
    """A service whose engine runs in this process."""

    llm: LLM = field(kw_only=True)


def load_engine(
    config: ServerConfig, model: str | None, observers: Sequence[Observer] = (), **options: Any
) -> LoadedEngine:
    """Load the model.

    Args:
        config: the server's options.
        model: as in ``LLM``.
        observers: called with a record of each step.
        **options: engine options, as in ``LLM``.

    Raises:
        ValueError: ``LLM`` rejects ``model``, ``observers`` or ``options``.
    """
    names = choose_model_names(config, model)
    metrics = Metrics(names[0])

    def load() -> LLM:
        return ServedLLM(model, observers=[metrics.on_step, *observers], **options)

    if choose_device(options.get("device", "auto")).type == "cuda":
        options = {"max_num_batched_tokens": MAX_TOKENS_ON_GPU, **options}
        llm = load()
    else:
        llm = _call_in_thread(load)
    metrics.describe_cache(cache_settings(llm.config, llm.built))
    return LoadedEngine(llm, metrics, names)


def _call_in_thread(load: Callable[[], LLM]) -> LLM:
    """Return what ``load`` returns, called in a thread that ends with it.

    A thread that has computed keeps a team of OpenMP threads. With two teams, that of the engine's
    thread and that of the one that has loaded the model, there are more threads than cores, and
    OpenMP lets none spin, whatever ``OMP_WAIT_POLICY`` says.
    """
    loaded: Future[LLM] = Future()

    def run() -> None:
        try:
            loaded.set_result(load())
        except BaseException as error:
            loaded.set_exception(error)

    Thread(target=run, name="loading", daemon=True).start()  # Ctrl-C doesn't wait for it
    return loaded.result()


def choose_num_processes(config: ServerConfig, device: str) -> int:
    """Return the number of HTTP processes beside the engine's; 0: the engine's process is the one.

    On a CPU, the engine computes in the same cores that other processes would use, and is slower
    than one process speaks.

    Args:
        config: the server's options.
        device: the option of the engine.
    """
    if config.api_server_count is not None:
        return config.api_server_count
    if config.view or choose_device(device).type != "cuda":
        return 0
    return max(1, min(MAX_PROCESSES, (os.cpu_count() or 1) // CORES_PER_PROCESS))


def make_service(
    config: ServerConfig,
    model: str | None,
    observers: Sequence[Observer] = (),
    view: ServerExtension | None = None,
    **options: Any,
) -> LocalService:
    """Load the model, and return a service with the engine in this process.

    Args:
        config: the server's options.
        model: as in ``LLM``.
        observers: called with a record of each step.
        view: extension to add. Default: with ``config.view``, the one registered as ``view``.
        **options: engine options, as in ``LLM``.

    Raises:
        ValueError: ``LLM`` rejects ``model``, ``observers`` or ``options``.
    """
    if view is None and config.view:
        view = load_extension("view")
    watchers = [view] if view else []
    loaded = load_engine(config, model, [*watchers, *observers], **options)
    llm, metrics = loaded.llm, loaded.metrics
    engine = AsyncEngine(llm.engine, metrics, view.pace if view else None, llm.built.idle_work)
    if view:
        view.attach(llm, engine)
    served = ServedModel.of(llm)
    return LocalService(served, engine, metrics, config, loaded.model_names, view, llm=llm)
