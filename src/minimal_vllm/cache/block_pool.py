"""The pool of KV blocks: which requests reference a block, and which content is cached in it.

A block holds the keys and values of ``block_size`` consecutive tokens. The pool hands out block
ids; the tensors behind them are in ``kv_cache``. Every block is in exactly one of three states:

          allocate                       release (unhashed)
    FREE ─────────▶ REFERENCED ────────────────────────────▶ FREE
                    │  ▲     │ release (hashed)
     share (a hit)  │  │     ▼
     by one more    └──┘   CACHED (evictable): still found by its hash
     request           ▲     │
                       └─────┤ share (a hit)
                             └ evict ▶ REFERENCED, by a request that needs room

``store`` gives a full block its hash; from then on the block is immutable and may be shared. A
partly filled block is referenced by one request and has no hash.

Source: Kwon et al., *PagedAttention*, SOSP 2023, sections 4.2 to 4.4.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from minimal_vllm.cache.eviction import EvictionStrategy

if TYPE_CHECKING:
    from minimal_vllm.cache.watcher import CacheWatcher


class InvariantError(AssertionError):
    """The pool's state is inconsistent: a bug in the engine, never a user's fault."""


class BlockPool:
    """Pool of the block ids ``0 … num_blocks - 1``: allocates, shares, caches and evicts them.

    The cost of a step's operations does not grow with the size of the pool.
    """

    def __init__(self, num_blocks: int, eviction: EvictionStrategy) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._block_of_hash: dict[bytes, int] = {}
        # A stack: the block freed last is used next, so that unneeded memory stays untouched.
        self._free = list(reversed(range(num_blocks)))
        self._evictable = eviction
        self._evicted: list[int] = []
        self.watchers: list[CacheWatcher] = []

    @property
    def num_free(self) -> int:
        """Number of blocks that ``allocate`` can hand out: free and evictable ones."""
        return len(self._free) + len(self._evictable)

    @property
    def num_cached(self) -> int:
        """Number of blocks that can be found by their hash, referenced or not."""
        return len(self._block_of_hash)

    @property
    def hashes(self) -> dict[int, bytes]:
        """Hash of every block that can be found by it, referenced or not."""
        return {block: block_hash for block_hash, block in self._block_of_hash.items()}

    @property
    def eviction_order(self) -> list[int]:
        """Cached blocks that no request references, the next to be evicted first."""
        return self._evictable.in_order()

    def is_evictable(self, block: int) -> bool:
        """Return whether ``block`` is cached and unreferenced: sharing it uses up a free block."""
        return block in self._evictable

    def find(self, block_hash: bytes) -> int | None:
        """Return the block that is cached under a hash, without a reference, or None."""
        return self._block_of_hash.get(block_hash)

    def find_prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """Return the blocks of the longest cached prefix of ``hashes``, without a reference."""
        blocks: list[int] = []
        block_of = self._block_of_hash.get
        for block_hash in hashes:
            block = block_of(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """Add one reference to each of these cached blocks."""
        references, hit = self._references, self._evictable.hit
        for block in blocks:
            hit(block)
            if references[block] == 0:
                self._evictable.remove(block)
            references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Return ``count`` blocks for one request: free ones first, then by eviction.

        Raises:
            ValueError: fewer than ``count`` blocks are free or evictable; none was taken.
        """
        if count > self.num_free:
            raise ValueError(f"{count} blocks wanted, {self.num_free} free")
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def store(self, block: int, block_hash: bytes) -> None:
        """Cache a full, referenced block, so that it can be found by the hash of its content.

        If another block holds the same content, the new block replaces it: its request also holds
        the rest of the prefix, so that all blocks of the prefix age together.
        """
        older = self._block_of_hash.get(block_hash)
        if older == block:
            return
        if older is not None:
            self._drop_content(older)
        self._hashes[block] = block_hash
        self._block_of_hash[block_hash] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Remove one reference from each block of a table, given in the order of its tokens."""
        references = self._references
        for block in reversed(blocks):  # the tail is released before the head, and so evicted first
            references[block] -= 1
            if references[block] == 0:
                if self._hashes[block] is None:
                    self._free.append(block)
                else:
                    self._evictable.insert(block)

    def forget(self, blocks: Iterable[int]) -> None:
        """Drop the hashes of blocks, so that they can't be found. Requests keep the blocks."""
        for block in blocks:
            if self._hashes[block] is not None:
                self._tell_removed(self._drop_content(block))

    def forget_all(self) -> None:
        """Drop the hashes of all blocks."""
        for block in list(self._block_of_hash.values()):
            self._drop_content(block)
        for watcher in self.watchers:
            watcher.cleared()

    def emptied(self) -> "BlockPool":
        """Return a new pool of the same size and strategy, with nothing cached or referenced."""
        pool = type(self)(self.num_blocks, type(self._evictable)())
        pool.watchers = self.watchers
        pool.forget_all()
        return pool

    def take_evicted(self) -> list[int]:
        """Return the blocks evicted since the last call, in order."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def _evict(self) -> int:
        block = self._evictable.evict()
        self._tell_removed(self._drop_hash(block))
        self._evicted.append(block)
        return block

    def _drop_content(self, block: int) -> bytes:
        block_hash = self._drop_hash(block)
        if block in self._evictable:
            self._evictable.remove(block)
            self._free.append(block)
        return block_hash

    def _tell_removed(self, block_hash: bytes) -> None:
        for watcher in self.watchers:
            watcher.removed(block_hash)

    def _drop_hash(self, block: int) -> bytes:
        block_hash = self._hashes[block]
        assert block_hash is not None  # noqa: S101 - narrows the type; check() proves it
        del self._block_of_hash[block_hash]
        self._hashes[block] = None
        self._evictable.forget(block)
        return block_hash

    def check(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Verify for every block that its state agrees with the live requests' block tables.

        Takes time proportional to the size of the pool: for tests and debugging.

        Raises:
            InvariantError: the message names a block and what is wrong with it.
        """
        owners = _count_owners(block_tables)
        if not all(0 <= block < self.num_blocks for block in owners):
            raise InvariantError("a block table names a block that the pool does not have")
        free = Counter(self._free)
        for block in range(self.num_blocks):
            self._check_block(block, owners[block], free[block])
        hashed = sum(block_hash is not None for block_hash in self._hashes)
        if hashed != len(self._block_of_hash):
            raise InvariantError(f"{len(self._block_of_hash)} hashes lead to {hashed} blocks")

    def _check_block(self, block: int, owners: int, times_free: int) -> None:
        references, block_hash = self._references[block], self._hashes[block]
        evictable = block in self._evictable
        if references != owners:
            holders = "1 request holds" if owners == 1 else f"{owners} requests hold"
            raise InvariantError(
                f"self._references[{block}] is {references}, but {holders} block {block}"
            )
        if (references > 0) + times_free + evictable != 1:
            raise InvariantError(f"block {block} is not in exactly one state")
        if evictable and block_hash is None:
            raise InvariantError(f"block {block} is evictable without a hash")
        if times_free and block_hash is not None:
            raise InvariantError(f"block {block} is free but still has a hash")
        if block_hash is not None and self._block_of_hash.get(block_hash) != block:
            raise InvariantError(f"block {block} has a hash that leads elsewhere")


def _count_owners(block_tables: Iterable[Sequence[int]]) -> Counter[int]:
    owners: Counter[int] = Counter()
    for table in block_tables:
        if len(set(table)) != len(table):
            raise InvariantError(f"a block stands twice in the block table {list(table)}")
        owners.update(table)
    return owners
