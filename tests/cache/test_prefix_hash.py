from array import array
from hashlib import sha256

import pytest

from minimal_vllm.cache.prefix_hash import extend_block_hashes


def hashes_of(token_ids, block_size=4, salt=b""):
    hashes = []
    extend_block_hashes(hashes, array("i", token_ids), block_size, salt)
    return hashes


def test_hashes_chain_parent_and_tokens():
    first = sha256(sha256(b"").digest() + array("i", [1, 2]).tobytes()).digest()
    second = sha256(first + array("i", [3, 4]).tobytes()).digest()
    assert hashes_of([1, 2, 3, 4, 5], block_size=2) == [first, second]


@pytest.mark.parametrize(("num_tokens", "num_hashes"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2)])
def test_only_full_blocks_have_a_hash(num_tokens, num_hashes):
    assert len(hashes_of(range(num_tokens))) == num_hashes


def test_extending_gives_what_hashing_at_once_gives():
    hashes = []
    for length in range(20):
        extend_block_hashes(hashes, array("i", range(length)), 4)
    assert hashes == hashes_of(range(19))


def test_equal_tokens_behind_another_prefix_have_another_hash():
    one, other = hashes_of([1, 2, 3, 4, 9, 9, 9, 9]), hashes_of([1, 2, 3, 5, 9, 9, 9, 9])
    assert set(one).isdisjoint(other)


def test_salts_share_no_hash():
    tokens = range(12)
    every = [*hashes_of(tokens), *hashes_of(tokens, salt=b"a"), *hashes_of(tokens, salt=b"b")]
    assert len(set(every)) == 9
