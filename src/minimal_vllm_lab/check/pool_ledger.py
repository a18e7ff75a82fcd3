"""The ledger that a block pool is compared with: its right state, known from the calls alone."""

from collections import Counter
from collections.abc import Sequence


class Ledger:
    """The state that follows from the calls alone, whatever the pool reports."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.owners: Counter[int] = Counter()
        self.block_of_hash: dict[bytes, int] = {}
        self.idle: list[int] = []
        """Cached blocks that no request holds, the next one to be evicted first."""
        self.evicted: list[int] = []
        self.hits: Counter[int] = Counter()

    @property
    def free(self) -> list[int]:
        """Blocks that no request holds."""
        return [block for block in range(self.num_blocks) if not self.owners[block]]

    @property
    def num_free(self) -> int:
        """Number of blocks that no request holds."""
        return len(self.free)

    @property
    def num_empty(self) -> int:
        """Number of free blocks in which nothing is cached."""
        return self.num_free - len(self.idle)

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """Return the blocks of the longest cached prefix."""
        found = []
        for block_hash in hashes:
            if block_hash not in self.block_of_hash:
                break
            found.append(self.block_of_hash[block_hash])
        return found

    def share(self, blocks: Sequence[int]) -> None:
        """Note that one more request holds these cached blocks: a hit each."""
        self.hits.update(blocks)
        self.hold(blocks)

    def hold(self, blocks: Sequence[int]) -> None:
        """Note that one more request holds these blocks."""
        self.owners.update(blocks)
        self.idle = [block for block in self.idle if block not in blocks]

    def release(self, blocks: Sequence[int]) -> None:
        """Note that a request has released its block table."""
        self.owners.subtract(blocks)
        cached = set(self.block_of_hash.values())
        self.idle += [each for each in reversed(blocks) if not self.owners[each] and each in cached]

    def forget(self, blocks: Sequence[int]) -> None:
        """Note that the content of these blocks is no longer cached."""
        for block in blocks:
            self.hits.pop(block, None)
        self.block_of_hash = {
            block_hash: block
            for block_hash, block in self.block_of_hash.items()
            if block not in blocks
        }
        self.idle = [block for block in self.idle if block not in blocks]
