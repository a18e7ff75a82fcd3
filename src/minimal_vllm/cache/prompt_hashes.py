"""Block hashes of prompts, of which a beginning that was hashed before is not hashed again."""

from bisect import bisect_left
from collections import OrderedDict
from typing import TYPE_CHECKING

from minimal_vllm.cache.prefix_hash import extend_block_hashes

if TYPE_CHECKING:
    from array import array

MAX_KNOWN = 16
"""Maximum number of prompts whose hashes are remembered."""

PIECE = 512
"""Number of tokens that are compared at once."""


class PromptHashes:
    """Computes block hashes as ``extend_block_hashes`` does, and remembers those of recent prompts.

    Many prompts begin with the same system prompt. Comparing two prompts takes a hundredth of the
    time of hashing one. Of all prompts with the same first block, the last one is remembered.

    Args:
        block_size: tokens per block.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        # The key is the hash of the first block, which depends on the salt, too.
        self._known: OrderedDict[bytes, tuple[array[int], list[bytes]]] = OrderedDict()

    def extend(self, hashes: list[bytes], token_ids: "array[int]", salt: bytes) -> None:
        """Append the missing hashes of full blocks; see ``extend_block_hashes``."""
        if not hashes and len(token_ids) >= 2 * self._block_size:
            self._begin(hashes, token_ids, salt)
        extend_block_hashes(hashes, token_ids, self._block_size, salt)

    def _begin(self, hashes: list[bytes], token_ids: "array[int]", salt: bytes) -> None:
        """Append all hashes of a prompt: the known ones first, then the others."""
        extend_block_hashes(hashes, token_ids[: self._block_size], self._block_size, salt)
        first = hashes[0]
        if known := self._known.pop(first, None):
            known_tokens, known_hashes = known
            num_equal = _num_equal(known_tokens, token_ids) // self._block_size
            hashes.extend(known_hashes[1:num_equal])
        extend_block_hashes(hashes, token_ids, self._block_size, salt)
        self._known[first] = token_ids[:], hashes[:]
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)


def _num_equal(one: "array[int]", other: "array[int]") -> int:
    """Return the number of tokens with which both lists begin."""
    length = min(len(one), len(other))
    for start in range(0, length, PIECE):
        end = min(start + PIECE, length)
        if _differ(one, other, start, end):
            return start + _num_equal_in_piece(one[start:end], other[start:end])
    return length


def _num_equal_in_piece(one: "array[int]", other: "array[int]") -> int:
    ends = range(1, len(one) + 1)
    return bisect_left(ends, True, key=lambda end: _differ(one, other, 0, end))


def _differ(one: "array[int]", other: "array[int]", start: int, end: int) -> bool:
    """Compare tokens as bytes, which takes a tenth of the time of comparing them as numbers."""
    return one[start:end].tobytes() != other[start:end].tobytes()
