"""Steps that run before the first request, to compile kernels and initialize libraries."""

from collections.abc import Iterator

from minimal_vllm.attention.library import MIN_TOKENS
from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.admission import Admission, ModelLimits
from minimal_vllm.engine.engine import Engine
from minimal_vllm.engine.output_processor import OutputProcessor
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.runner.interface import Runner
from minimal_vllm.sampling_params import SamplingParams


def warm_up(runner: Runner, config: SchedulerConfig, num_blocks: int, limits: ModelLimits) -> None:
    """Run every kind of step once, in a temporary engine with its own scheduler and block pool.

    Args:
        runner: the runner to warm up. The blocks that the steps write never become cached prefixes.
        config: limits of the scheduler.
        num_blocks: number of KV blocks.
        limits: limits of the model.
    """
    engine = Engine(
        Scheduler(config, BlockPool(num_blocks, LRU())),
        runner,
        Admission(limits, None, seed=0),
        OutputProcessor(None),
    )
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    for lengths in _prompt_lengths(config.max_num_batched_tokens):
        for index, length in enumerate(lengths):
            prompt = [0] * min(length, config.max_model_len - 1)
            # Without separate salts, all prompts but the first would be found in the cache.
            engine.add_request(str(index), prompt, params, cache_salt=str(index))
        while engine.has_unfinished_requests:
            engine.step()


def _prompt_lengths(budget: int) -> Iterator[list[int]]:
    """Yield the prompt lengths of each kind of step: one request, several, and the largest step.

    The largest step has prompts for cuDNN's attention, one with and one without padding, and
    prompts that are too short for it.
    """
    yield [32]
    yield [2] * 5
    short = MIN_TOKENS - 1
    yield [MIN_TOKENS, MIN_TOKENS + 1] + [short] * (budget // short)
