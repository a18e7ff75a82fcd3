"""Making the block pool and the scheduler, built-in or the user's. Nothing here imports torch."""

import time
from collections.abc import Callable
from functools import partial

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import EVICTION_STRATEGIES, EvictionStrategy
from minimal_vllm.config import EngineConfig, SchedulerConfig, SpeculativeConfig
from minimal_vllm.engine.alternating_scheduler import AlternatingScheduler
from minimal_vllm.engine.decide import Decide, DecidedGuesser, alone
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.engine.scheduler_interface import SchedulerInterface
from minimal_vllm.engine.speculating_scheduler import SpeculatingScheduler
from minimal_vllm.plugin import make_part
from minimal_vllm.runner.shapes import max_places
from minimal_vllm.speculation.allowance import HEAD_SHARE, SHARE
from minimal_vllm.speculation.interface import (
    CheckedGuesser,
    EaglePlaceholders,
    Guesser,
    Placeholders,
)
from minimal_vllm.speculation.ngram import NgramGuesser
from minimal_vllm.trace.step_record import Observer


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
    config: EngineConfig,
    limits: SchedulerConfig,
    pool: BlockPool,
    vocab_size: int = 0,
    *,
    on_gpu: bool = False,
    decide: Decide = alone,
) -> SchedulerInterface:
    """Make a scheduler without requests.

    Args:
        config: the user's configuration.
        limits: limits of the scheduler.
        pool: blocks.
        vocab_size: number of the model's tokens, which guesses must be among.
        on_gpu: whether our own kernels compute whole steps on a GPU.
        decide: makes a decision that depends on the time, for all ranks.

    Raises:
        ValueError: a class of the user's can't be loaded or lacks methods of the interface, or the
            limits don't fit the pool or the guesses.
    """
    speculative = config.speculative_config
    if speculative is not None:
        guesser = make_guesser(speculative, vocab_size)
        if ":" in speculative.guesser:  # a class of the user's, which may decide by anything
            guesser = DecidedGuesser(guesser, decide)
        clock = partial(decide, time.perf_counter if on_gpu else time.thread_time)
        return make_speculating_scheduler(speculative, limits, pool, guesser, clock, on_gpu=on_gpu)
    return make_part(config.scheduler or Scheduler, SchedulerInterface, limits, pool)


def make_speculating_scheduler(
    config: SpeculativeConfig,
    limits: SchedulerConfig,
    pool: BlockPool,
    guesser: Guesser,
    clock: Callable[[], float],
    *,
    on_gpu: bool = False,
) -> SpeculatingScheduler:
    """Make a scheduler that adds guesses to its plans, without requests.

    Args:
        config: the user's options of speculative decoding.
        limits: limits of the scheduler.
        pool: blocks.
        guesser: proposes the tokens, and never fails.
        clock: returns the time in seconds, of which the cost of steps is learned.
        on_gpu: see ``make_scheduler``.

    Raises:
        ValueError: the limits leave no room for the guesses.
    """
    most, in_passes = config.max_guesses, config.in_passes
    _check_guesses_fit(most, limits)
    may_lose = HEAD_SHARE if config.guesser == "eagle3" else SHARE
    if not on_gpu:
        return SpeculatingScheduler(
            limits, pool, guesser, most, in_passes=in_passes, may_lose=may_lose, clock=clock
        )
    return AlternatingScheduler(
        limits,
        pool,
        guesser,
        most,
        max_step_tokens=max_places(limits.max_num_seqs, most),
        in_passes=in_passes,
        may_follow=in_passes,
        may_lose=may_lose,
        clock=clock,
    )


def watch_cache(config: EngineConfig, limits: SchedulerConfig, pool: BlockPool) -> list[Observer]:
    """Let events of the prefix cache be published, if they are configured.

    Returns:
        Observers of the engine that this needs.

    Raises:
        ValueError: a package is missing, or an endpoint can't be used.
    """
    events = config.kv_events_config
    if events is None or not events.publishes:
        return []
    try:
        from minimal_vllm.kv_events.publisher import KvEventPublisher
        from minimal_vllm.kv_events.source import KvEventSource
    except ModuleNotFoundError as error:
        raise ValueError(
            f"kv_events_config needs {error.name}, which is not installed: "
            "pip install 'minimal-vllm[events]'"
        ) from error
    source = KvEventSource(limits, KvEventPublisher(events).publish)
    pool.watchers.append(source)
    return [source]


def make_guesser(config: SpeculativeConfig, vocab_size: int) -> Guesser:
    """Make the configured guesser of speculative decoding.

    Raises:
        ValueError: the user's class can't be loaded, or lacks methods of the interface.
    """
    match config.guesser:
        case "draft_model":
            return Placeholders()
        case "eagle3":
            return EaglePlaceholders()
        case "ngram":
            return CheckedGuesser(NgramGuesser(*config.lookup_lengths), vocab_size)
        case _:
            return CheckedGuesser(make_part(config.guesser, Guesser), vocab_size)


def _check_guesses_fit(max_guesses: int, limits: SchedulerConfig) -> None:
    if max_guesses > limits.block_size:
        raise ValueError(
            f"num_speculative_tokens is {max_guesses}, but must be at most block_size "
            f"({limits.block_size})"
        )
    if max_guesses >= limits.max_num_batched_tokens:
        raise ValueError(
            f"num_speculative_tokens is {max_guesses}, but must be below max_num_batched_tokens "
            f"({limits.max_num_batched_tokens}): a step computes the guesses and one more token"
        )
