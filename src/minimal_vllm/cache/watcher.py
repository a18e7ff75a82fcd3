"""Interface of those that want to know what the prefix cache gains and loses."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from array import array


class CachedTokens(Protocol):
    """A request as watchers read it: tokens, and the blocks that hold their keys and values."""

    token_ids: "array[int]"
    block_table: "array[int]"
    block_hashes: list[bytes]
    cache_salt: bytes


class CacheWatcher(Protocol):
    """Follows the contents of a block pool. Called in the engine's thread, within a step."""

    def stored(self, request: CachedTokens, first: int, end: int) -> None:
        """Take notice that the prefix cache can find ``block_hashes[first:end]`` of a request."""

    def removed(self, block_hash: bytes) -> None:
        """Take notice that a block, named by its ``group_hash``, can't be found any more."""

    def cleared(self) -> None:
        """Take notice that no block can be found any more."""
