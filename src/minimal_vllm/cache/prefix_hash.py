"""Hashes of the content of full blocks: equal hashes mean equal prefixes."""

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from array import array


def extend_block_hashes(
    hashes: list[bytes], token_ids: "array[int]", block_size: int, salt: bytes = b""
) -> None:
    """Append the hashes of those full blocks of ``token_ids`` that are missing in ``hashes``.

    The keys and values in a block depend on all tokens before it, so a block's hash includes its
    parent's: ``h[i] = sha256(h[i-1] + tokens[i*S : (i+1)*S])``. The first block's parent is the
    hash of the salt, which stands for everything else that keys and values, or the right to share
    them, depend on. With SHA-256, equal hashes mean equal prefixes: not even an adversary can
    produce a collision, so collisions are not checked for.

    Source: vLLM, https://docs.vllm.ai/en/latest/design/prefix_caching/.

    Args:
        hashes: one 32-byte digest per full block so far, extended in place.
        token_ids: ``array('i')``, so that a block's tokens are 4 bytes each, without conversion.
        block_size: tokens per block.
        salt: requests with different salts share no blocks.
    """
    first = len(hashes) * block_size
    new = token_ids[first : len(token_ids) // block_size * block_size].tobytes()
    block_bytes = block_size * token_ids.itemsize
    parent = hashes[-1] if hashes else sha256(salt).digest()
    for start in range(0, len(new), block_bytes):
        parent = sha256(parent + new[start : start + block_bytes]).digest()
        hashes.append(parent)
