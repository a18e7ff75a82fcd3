"""Making events of what happens to the block pool."""

import time
from collections.abc import Callable

from minimal_vllm.cache.layer_groups import NO_BLOCK
from minimal_vllm.cache.watcher import CachedTokens
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.kv_events.messages import (
    MEDIUM,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEventBatch,
)
from minimal_vllm.trace.step_record import StepRecord

HASH_BYTES = 32
"""Bytes of a block's hash. One more names the group of layers, unless it is the first."""


class KvEventSource:
    """Watches a block pool, and hands over the events of each step as one batch.

    It is one of the pool's watchers, and an observer of the engine.

    Args:
        config: the block size, and the windows of the groups of layers.
        publish: called in the engine's thread with each batch.
    """

    def __init__(self, config: SchedulerConfig, publish: Callable[[KvEventBatch], None]) -> None:
        self._config = config
        self._publish = publish
        self._events: list[BlockStored | BlockRemoved | AllBlocksCleared] = []

    def __call__(self, record: StepRecord) -> None:  # noqa: ARG002 - what it did was watched
        """Publish the events since the last step, if there are any."""
        if self._events:
            events, self._events = self._events, []
            self._publish(KvEventBatch(time.time(), events, data_parallel_rank=0))

    def stored(self, request: CachedTokens, first: int, end: int) -> None:
        """Note blocks that can be found from now on: an event for each group of layers."""
        num_groups = len(self._config.windows)
        for group, window in enumerate(self._config.windows):
            column = request.block_table[first * num_groups + group : end * num_groups : num_groups]
            start = first + column.count(NO_BLOCK)  # a window has passed the first ones
            if start < end:
                self._events.append(self._describe(request, start, end, group, window))

    def removed(self, block_hash: bytes) -> None:
        """Note a block that can't be found any more."""
        group = block_hash[HASH_BYTES] if len(block_hash) > HASH_BYTES else 0
        name = external_hash(block_hash[:HASH_BYTES])
        self._events.append(BlockRemoved([name], MEDIUM, group_idx=group))

    def cleared(self) -> None:
        """Note that no block can be found any more."""
        self._events.append(AllBlocksCleared())

    def _describe(
        self, request: CachedTokens, first: int, end: int, group: int, window: int | None
    ) -> BlockStored:
        hashes, size = request.block_hashes, self._config.block_size
        extra_keys: list[tuple[str] | None] = [None] * (end - first)
        if first == 0 and request.cache_salt:
            extra_keys[0] = (request.cache_salt.decode(),)
        return BlockStored(
            block_hashes=[external_hash(each) for each in hashes[first:end]],
            parent_block_hash=external_hash(hashes[first - 1]) if first else None,
            token_ids=request.token_ids[first * size : end * size].tolist(),
            block_size=size,
            lora_id=None,
            medium=MEDIUM,
            lora_name=None,
            extra_keys=extra_keys,
            group_idx=group,
            kv_cache_spec_kind="sliding_window" if window else "full_attention",
            kv_cache_spec_sliding_window=window,
        )


def external_hash(block_hash: bytes) -> int:
    """Return a block's hash as vLLM publishes it by default: its last 64 bits."""
    return int.from_bytes(block_hash[-8:], "big")
