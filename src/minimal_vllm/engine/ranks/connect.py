"""Connecting the ranks of an engine, by what their device has."""

from pathlib import Path

from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.sizing import choose_device
from minimal_vllm.model.ranks import Ranks


def connect(config: EngineConfig, folder: Path, index: int) -> Ranks:
    """Meet the other ranks; all must call this.

    Args:
        config: the engine's configuration.
        folder: an empty folder through which the ranks find each other.
        index: number of this rank.

    Raises:
        RankLostError: another rank has not appeared in time.
    """
    if choose_device(config.device).type == "cuda":
        from minimal_vllm.engine.ranks.nccl import NcclRanks

        return NcclRanks(folder, index, config.tensor_parallel_size)
    from minimal_vllm.engine.ranks.group import GlooRanks

    return GlooRanks(folder, index, config.tensor_parallel_size)
