"""Exercise prefix-hash: find the beginning of a prompt that was computed before.

The idea. Keys and values of a token depend on the tokens before it, and on nothing behind it. Two
prompts that begin alike can share the blocks of their common beginning. To find such blocks, each
full block gets a name that depends on all tokens up to its end. A block's name covers the name of
the block before it, its *parent*::

    tokens      [ 7 2 9 4 | 1 1 5 0 | 3 8 ]        blocks of 4; the last is not full: no name
    names         h0        h1
    h0 = sha256(sha256(salt) + tokens 0-3)         the salt: who may share with whom
    h1 = sha256(h0           + tokens 4-7)

Equal names mean equal beginnings: SHA-256 has no known collisions. Another first token changes all
names.

What you have: ``self._block_of_hash``, a dict from a name to the block with that content;
``self._references`` (per block, how many requests hold it); ``self._evictable``, the strategy that
knows the cached blocks that nobody holds: ``hit(block)`` tells it that a block was found,
``remove(block)`` that it is evictable no more.

What to write: ``extend_block_hashes``, ``MyPool.find_prefix`` and ``MyPool.share``.

How it is checked: names of random texts that begin alike or not; then random requests on the pool.

    minimal-vllm learn check prefix-hash
    minimal-vllm learn run prefix-hash
"""

from array import array
from collections.abc import Iterable, Sequence
from hashlib import sha256

from minimal_vllm.cache.block_pool import BlockPool


def extend_block_hashes(
    hashes: list[bytes], token_ids: "array[int]", block_size: int, salt: bytes = b""
) -> None:
    """Append to ``hashes`` the hash of every full block of ``token_ids`` that it lacks.

    Args:
        hashes: of the first blocks, extended in place; those that it has are not computed again.
        token_ids: ``array('i')``; a slice of it has ``tobytes()``.
        block_size: tokens per block.
        salt: requests with different salts share nothing.
    """
    raise NotImplementedError(
        "the parent of the first missing hash is hashes[-1], or sha256(salt).digest(); then hash "
        "parent + the tokens' bytes for each full block, and append"
    )


class MyPool(BlockPool):
    """A block pool with two methods of your own."""

    def find_prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest cached prefix of ``hashes``; takes no reference."""
        raise NotImplementedError(
            "look each hash up in self._block_of_hash, and stop at the first that is not there"
        )

    def share(self, blocks: Sequence[int]) -> None:
        """Take one more reference on each of these cached blocks."""
        raise NotImplementedError(
            "for each block: tell self._evictable of the hit; if nobody held it, it is evictable "
            "no more; then count the reference"
        )
