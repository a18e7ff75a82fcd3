"""Making the block pool and the scheduler, built-in or the user's. Nothing here imports torch."""

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import EVICTION_STRATEGIES, EvictionStrategy
from minimal_vllm.config import EngineConfig, SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.engine.scheduler_interface import SchedulerInterface
from minimal_vllm.plugin import make_part


def make_pool(config: EngineConfig, num_blocks: int) -> BlockPool:
    """Make an empty block pool with the configured eviction strategy.

    Raises:
        ValueError: a class of the user's can't be loaded, or lacks methods of the interface.
    """
    policy = config.eviction_policy
    strategy = EVICTION_STRATEGIES.get(policy, policy) if isinstance(policy, str) else policy
    eviction = make_part(strategy, EvictionStrategy)
    return make_part(config.block_pool or BlockPool, BlockPool, num_blocks, eviction)


def make_scheduler(
    config: EngineConfig, limits: SchedulerConfig, pool: BlockPool
) -> SchedulerInterface:
    """Make a scheduler without requests.

    Raises:
        ValueError: the user's class can't be loaded or lacks methods of the interface, or the
            limits don't fit the pool.
    """
    return make_part(config.scheduler or Scheduler, SchedulerInterface, limits, pool)
