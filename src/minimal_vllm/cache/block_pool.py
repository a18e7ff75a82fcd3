"""Who owns which KV block.

A block holds the keys and values of ``block_size`` consecutive tokens. The pool hands out block
ids; the tensors behind them are ``kv_cache``'s. Every block is in exactly one of three states:

          allocate                       release (unhashed)
    FREE ─────────▶ REFERENCED ────────────────────────────▶ FREE
                    │  ▲     │ release (hashed)
     share (a hit)  │  │     ▼
     by one more    └──┘   CACHED (evictable): still findable by its hash
     request           ▲     │
                       └─────┤ share (a hit)
                             └ evict ▶ REFERENCED, by a request that needs room

``store`` gives a full block its hash, from which on it is immutable and may be shared. A partly
filled block has one owner and no hash.

Source: Kwon et al., *PagedAttention*, SOSP 2023, sections 4.2 to 4.4.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from minimal_vllm.cache.eviction import EvictionStrategy


class InvariantError(AssertionError):
    """The pool's books are wrong: a bug in the engine, never a user's fault."""


class BlockPool:
    """Allocates, shares, caches and evicts the ids ``0 … num_blocks - 1``.

    What a step asks of it takes no longer in a larger pool.
    """

    def __init__(self, num_blocks: int, eviction: EvictionStrategy) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._block_of_hash: dict[bytes, int] = {}
        # A stack: what was used last is used next, so that memory never needed is never touched.
        self._free = list(reversed(range(num_blocks)))
        self._evictable = eviction
        self._evicted: list[int] = []

    @property
    def num_free(self) -> int:
        """How many blocks ``allocate`` could hand out now: the free and the evictable ones."""
        return len(self._free) + len(self._evictable)

    @property
    def num_cached(self) -> int:
        """How many blocks can be found by their hash, referenced or not."""
        return len(self._block_of_hash)

    @property
    def hashes(self) -> dict[int, bytes]:
        """Every block that can be found by its hash, referenced or not, with it."""
        return {block: block_hash for block_hash, block in self._block_of_hash.items()}

    @property
    def eviction_order(self) -> list[int]:
        """The blocks that are cached and unreferenced, the next to be evicted first."""
        return self._evictable.in_order()

    def is_evictable(self, block: int) -> bool:
        """Whether ``block`` is cached and unreferenced, so that sharing it uses up a free block."""
        return block in self._evictable

    def find_prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest cached prefix of ``hashes``; takes no reference."""
        blocks: list[int] = []
        for block_hash in hashes:
            block = self._block_of_hash.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """Take one more reference on each of these cached blocks."""
        for block in blocks:
            self._evictable.hit(block)
            if self._references[block] == 0:
                self._evictable.remove(block)
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks for one owner: free ones first, then by eviction.

        Raises:
            ValueError: fewer than ``count`` blocks are free; nothing was taken.
        """
        if count > self.num_free:
            raise ValueError(f"{count} blocks wanted, {self.num_free} free")
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def store(self, block: int, block_hash: bytes) -> None:
        """Make a full, referenced block findable under the hash of its content.

        If another block holds the same content, the newest one takes its place: its owner holds
        the rest of the prefix too, so that the chain is used, and ages, as one.
        """
        older = self._block_of_hash.get(block_hash)
        if older == block:
            return
        if older is not None:
            self._drop_content(older)
        self._hashes[block] = block_hash
        self._block_of_hash[block_hash] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference on each block of a table, given in the order of its tokens."""
        for block in reversed(blocks):  # the tail is older than its head: it is evicted first
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._hashes[block] is None:
                    self._free.append(block)
                else:
                    self._evictable.insert(block)

    def forget(self, blocks: Iterable[int]) -> None:
        """Let nobody find the content of these blocks any more; their owners keep them."""
        for block in blocks:
            if self._hashes[block] is not None:
                self._drop_content(block)

    def forget_all(self) -> None:
        """Let nobody find any cached content any more."""
        self.forget(list(self._block_of_hash.values()))

    def emptied(self) -> "BlockPool":
        """A new pool of the same size and strategy, in which nothing is cached or referenced."""
        return type(self)(self.num_blocks, type(self._evictable)())

    def take_evicted(self) -> list[int]:
        """The blocks evicted since the last call, in order."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def _evict(self) -> int:
        block = self._evictable.evict()
        self._drop_hash(block)
        self._evicted.append(block)
        return block

    def _drop_content(self, block: int) -> None:
        self._drop_hash(block)
        if block in self._evictable:
            self._evictable.remove(block)
            self._free.append(block)

    def _drop_hash(self, block: int) -> None:
        block_hash = self._hashes[block]
        assert block_hash is not None  # noqa: S101 - narrows the type; check() proves it
        del self._block_of_hash[block_hash]
        self._hashes[block] = None
        self._evictable.forget(block)

    def check(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Prove for every block id that its state agrees with the live requests' block tables.

        Costs time in proportion to the pool: for tests and debugging.

        Raises:
            InvariantError: naming the block and what is wrong with it.
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
            raise InvariantError(f"block {block} counts {references} references, has {owners}")
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
