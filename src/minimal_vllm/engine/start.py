"""Starting an engine: in this process alone, or in several that compute the model together."""

from collections.abc import Sequence

from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.build import BuiltEngine, build_engine
from minimal_vllm.garbage import without_collections
from minimal_vllm.trace.step_record import Observer


def start_engine(
    config: EngineConfig,
    *,
    observers: Sequence[Observer] = (),
    progress: bool = False,
    lazy: bool = False,
) -> BuiltEngine:
    """Build an engine, with ``tensor_parallel_size - 1`` other processes that compute with it.

    These processes end when the engine is collected, or when this process ends.

    Args:
        config: the user's configuration.
        observers: see ``build_engine``.
        progress: see ``build_engine``.
        lazy: see ``build_engine``. Several ranks leave nothing.

    Raises:
        ValueError: see ``build_engine``; or the model can't be divided, or not here.
        RankFailedError: a process could not be started.
    """
    with without_collections():
        if config.tensor_parallel_size == 1:
            return build_engine(config, observers=observers, progress=progress, lazy=lazy)
        # It imports PyTorch's package for distributed computing, which takes a while.
        from minimal_vllm.engine.ranks.start import start_ranks

        return start_ranks(config, observers=observers, progress=progress)
