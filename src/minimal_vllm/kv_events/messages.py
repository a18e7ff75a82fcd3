"""The messages that are published: vLLM's, field by field.

Encoded as msgpack, a batch is an array, and each event in it a map whose ``type`` is the name of
its class. Fields with the value of their default are left out.

Source: vLLM 0.33.0, ``vllm/distributed/kv_events.py``.
"""

from typing import Any

import msgspec

MEDIUM = "GPU"
"""Tier of the cache that the model reads; vLLM calls it so on a CPU too."""


class KvEvent(msgspec.Struct, omit_defaults=True, gc=False, tag=True):
    """An event of the prefix cache."""


class BlockStored(KvEvent):
    """The prefix cache can now find consecutive blocks."""

    block_hashes: list[int]
    parent_block_hash: int | None
    """Hash of the block before the first one; None if that is the first of its prompt."""
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None
    """For each block, what its hash depends on beside tokens: the salt, for a prompt's first."""
    group_idx: int | None = None
    """Group of layers, each of which has blocks of its own."""
    kv_cache_spec_kind: str | None = None
    """``full_attention`` or ``sliding_window``."""
    kv_cache_spec_sliding_window: int | None = None


class BlockRemoved(KvEvent):
    """The prefix cache can't find these blocks any more."""

    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(KvEvent):
    """The prefix cache is empty."""


class KvEventBatch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """The events of one step, in their order."""

    ts: float
    """Time in seconds since 1970."""
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None
