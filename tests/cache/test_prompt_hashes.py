from array import array
from random import Random

import pytest

from minimal_vllm.cache.prefix_hash import extend_block_hashes
from minimal_vllm.cache.prompt_hashes import MAX_KNOWN, PIECE, PromptHashes


def hash_plainly(token_ids, block_size, salt):
    hashes = []
    extend_block_hashes(hashes, array("i", token_ids), block_size, salt)
    return hashes


@pytest.mark.parametrize("block_size", [1, 2, 4])
def test_hashes_are_those_of_plain_hashing_whatever_was_hashed_before(block_size):
    random, memory = Random(block_size), PromptHashes(block_size)
    bases = [random.choices(range(3), k=40) for _ in range(4)]
    for _ in range(400):
        token_ids = random.choice(bases)[: random.randrange(41)]
        token_ids += random.choices(range(3), k=random.randrange(12))
        salt = random.choice([b"", b"a"])
        hashes = []
        for end in sorted([random.randrange(len(token_ids) + 1), len(token_ids)]):
            memory.extend(hashes, array("i", token_ids[:end]), salt)
        assert hashes == hash_plainly(token_ids, block_size, salt)


def test_a_known_beginning_is_not_hashed_again(monkeypatch):
    memory = PromptHashes(4)
    prompt = array("i", range(400))
    memory.extend([], prompt, b"")
    num_hashed = []

    def count(hashes, token_ids, block_size, salt):
        before = len(hashes)
        extend_block_hashes(hashes, token_ids, block_size, salt)
        num_hashed.append(len(hashes) - before)

    monkeypatch.setattr("minimal_vllm.cache.prompt_hashes.extend_block_hashes", count)
    memory.extend([], prompt[:300] + array("i", [7] * 100), b"")
    assert sum(num_hashed) == 1 + 25  # the first block, and those after the common 300 tokens


@pytest.mark.parametrize("num_equal", [1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE - 1])
@pytest.mark.parametrize("num_more", [0, 1, PIECE])
def test_long_prompts_that_differ_near_the_edge_of_a_piece_are_hashed_rightly(num_equal, num_more):
    first = list(range(3 * PIECE))
    second = first[:num_equal] + [-1] * num_more
    memory, hashes = PromptHashes(1), []
    memory.extend([], array("i", first), b"")
    memory.extend(hashes, array("i", second), b"")
    assert hashes == hash_plainly(second, 1, b"")


def test_memory_of_prompts_is_bounded():
    memory = PromptHashes(2)
    for first in range(3 * MAX_KNOWN):
        memory.extend([], array("i", [first] * 6), b"")
    assert len(memory._known) == MAX_KNOWN


def test_what_a_request_appends_to_its_hashes_is_not_remembered():
    memory = PromptHashes(2)
    hashes = []
    memory.extend(hashes, array("i", [1, 2, 3, 4]), b"")
    memory.extend(hashes, array("i", [1, 2, 3, 4, 5, 6]), b"")
    other = []
    memory.extend(other, array("i", [1, 2, 3, 4, 7, 8]), b"")
    assert other == hash_plainly([1, 2, 3, 4, 7, 8], 2, b"")
