"""Exercise prefix-hash: find a prompt's longest cached prefix.

The idea. A token's key and value depend on the tokens before it, and on nothing after it. Two
prompts with the same prefix can share the blocks of that prefix. To find such blocks, each full
block gets a hash that depends on all tokens up to its end. It is computed from the block's own
tokens and from the hash of the block before it, its *parent*::

    tokens      [ 7 2 9 4 | 1 1 5 0 | 3 8 ]        blocks of 4; the last is not full: no hash
    hashes        h0        h1
    h0 = sha256(sha256(salt) + tokens 0-3)         requests with different salts share nothing
    h1 = sha256(h0           + tokens 4-7)

Equal hashes mean equal prefixes, because SHA-256 has no known collisions. Another first token
changes all hashes.

What you have: ``self._block_of_hash``, a dict from a hash to the block with that content;
``self._references``, the number of requests that hold each block; and ``self._evictable``, the
eviction strategy, which contains the cached blocks that no request holds. ``hit(block)`` tells it
that a block was found, and ``remove(block)`` that a block is no longer evictable.

What to write: ``extend_block_hashes``, ``MyPool.find_prefix`` and ``MyPool.share``.

How it is checked: hashes of random texts, with and without common prefixes; then random requests on
the pool.

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
    """Append the missing hashes of full blocks to ``hashes``.

    Args:
        hashes: hashes of the first blocks, extended in place. Existing hashes are not computed
            again.
        token_ids: an ``array('i')``; slices of it have ``tobytes()``.
        block_size: tokens per block.
        salt: requests with different salts share no blocks.
    """
    raise NotImplementedError


class MyPool(BlockPool):
    """A block pool with two methods of your own."""

    def find_prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """Return the blocks of the longest cached prefix of ``hashes``; take no references."""
        raise NotImplementedError

    def share(self, blocks: Sequence[int]) -> None:
        """Add one reference to each of these cached blocks."""
        raise NotImplementedError
