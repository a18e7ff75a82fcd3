"""Starting the ranks of an engine."""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial

import torch

from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.build import BuiltEngine, build_engine
from minimal_vllm.engine.ranks.connect import connect
from minimal_vllm.engine.ranks.followers import Followers
from minimal_vllm.engine.ranks.leader import LeadingEngine
from minimal_vllm.engine.ranks.messages import Built, Started
from minimal_vllm.engine.sizing import choose_device, read_model_config
from minimal_vllm.model.divided_config import divide
from minimal_vllm.model.hub import resolve_model
from minimal_vllm.model.ranks import ALONE, Ranks
from minimal_vllm.runner.failures import RankLostError
from minimal_vllm.trace.step_record import Observer


def start_ranks(
    config: EngineConfig, *, observers: Sequence[Observer] = (), progress: bool = False
) -> BuiltEngine:
    """Build rank 0's engine, and start the processes of the other ranks.

    Args:
        config: the user's configuration.
        observers: see ``build_engine``.
        progress: see ``build_engine``.

    Raises:
        ValueError: see ``build_engine``; or the model can't be divided, or not here.
        RankFailedError: a process could not be started.
    """
    _check_possible(config)
    checkpoint = resolve_model(config.model, config.revision, config.download_dir)
    divide(read_model_config(config, checkpoint), config.tensor_parallel_size)
    # The others need not look for the model again, and say nothing to the world.
    config = replace(config, model=str(checkpoint), revision=None)
    followers = Followers(replace(config, kv_events_config=None))
    ranks: Ranks = ALONE  # until they are connected
    try:
        followers.wait_until(Started)
        ranks = connect(config, followers.folder, 0)
        followers.call_when_one_ends(ranks.give_up)
        built = build_engine(
            config,
            observers=observers,
            progress=progress,
            ranks=ranks,
            make_engine=partial(LeadingEngine, followers=followers, ranks=ranks),
            decide=followers.decide,
        )
        followers.wait_until(Built)
    except BaseException as error:
        cause = followers.failure() if isinstance(error, RankLostError) else error
        ranks.give_up()  # or this process would wait for the others' parts when it ends
        followers.end()
        raise cause from error
    return built


def _check_possible(config: EngineConfig) -> None:
    """Check that the configuration is one that several ranks can have.

    Raises:
        ValueError: it isn't.
    """
    size = config.tensor_parallel_size
    if choose_device(config.device).type == "cuda":
        num_gpus = torch.cuda.device_count()
        if num_gpus < size:
            raise ValueError(
                f"tensor_parallel_size is {size}, but PyTorch finds {num_gpus} GPU"
                f"{'s' * (num_gpus > 1)} here, and each rank needs one: set it to {num_gpus}"
            )
    given = [
        field.name for field in fields(config) if isinstance(getattr(config, field.name), type)
    ]
    if given:
        raise ValueError(
            f"tensor_parallel_size is {size}, and {size - 1} other processes can't load a class "
            f"that is given as an object: give {' and '.join(given)} as 'FILE.py:CLASS'"
        )
