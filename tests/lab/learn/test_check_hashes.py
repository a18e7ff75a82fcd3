"""Each mistake in the hashes of blocks, and in sharing them, is found for its real reason."""

import pytest

from minimal_vllm_lab.check import pool_rules as pool
from minimal_vllm_lab.check.search import RAISES
from minimal_vllm_lab.learn import check_hashes as rules
from tests.lab.learn.mutants import module_with

COUNT = "len(token_ids) // block_size * block_size"
PARENT = "parent = hashes[-1] if hashes else sha256(salt).digest()"
DIGEST = "parent = sha256(parent + new[start : start + block_bytes]).digest()"
OWN = "new[start : start + block_bytes]"
FIRST = "first = len(hashes) * block_size"


def of_tokens(expression):
    """Hash ``expression`` of a block's tokens instead of their bytes."""
    return OWN, f"(lambda block: {expression})(memoryview({OWN}).cast('i').tolist())"


# The text of the solution that is replaced, and by what.
WRONG_HASHES = [
    ("DIFFERENT", DIGEST, DIGEST.replace("parent + ", "")),
    ("DIFFERENT", PARENT, PARENT.replace("(salt)", "()")),
    ("DIFFERENT", DIGEST, f"parent = sha256(sha256(salt).digest() + {OWN}).digest()"),
    ("DIFFERENT", OWN, "new[start : start + block_size]"),
    ("DIFFERENT", OWN, "new[start : start + 4]"),
    ("SAME", OWN, "new[:block_bytes]"),
    ("DIFFERENT", OWN, "new[start + block_bytes - 4 : start + block_bytes]"),
    ("DIFFERENT", *of_tokens("bytes(token % 256 for token in block)")),
    ("DIFFERENT", *of_tokens("repr(sorted(block)).encode()")),
    ("DIFFERENT", *of_tokens("repr(set(block)).encode()")),
    ("DIFFERENT", *of_tokens("repr(sum(block)).encode()")),
    ("DIFFERENT", *of_tokens("''.join(map(str, block)).encode()")),
    ("DIFFERENT", "parent = sha256(parent", "parent = parent and sha256(parent[:0]"),
    ("SAME", "hashes.append(parent)", "hashes.append(parent[:1])"),
    ("FULL", COUNT, "len(token_ids)"),
    ("SAME", FIRST, "first = 0"),
    ("SAME", FIRST, "first = block_size if hashes else 0; hashes += hashes[:1]"),
    ("FULL", "hashes.append(parent)", "hashes = [*hashes, parent]"),
    ("FULL", "hashes.append(parent)", "hashes[:] = [parent]"),
    ("FULL", "len(token_ids) // block_size", "(len(token_ids) - 1) // block_size"),
    ("SAME", PARENT, "parent = sha256(salt).digest()"),
    ("SAME", DIGEST, DIGEST.replace("parent +", "parent + bytes([len(token_ids)]) +")),
    ("SAME", DIGEST, DIGEST.replace("parent +", "parent + bytes([len(hashes) - first]) +")),
    ("SAME", DIGEST, DIGEST.replace("parent +", "parent + token_ids.tobytes() +")),
    ("SAME", DIGEST, DIGEST.replace("parent +", "parent + repr(id(hashes)).encode() +")),
]


@pytest.mark.breaks("prefix-hash")
@pytest.mark.parametrize(("rule", "old", "new"), WRONG_HASHES)
def test_wrong_hashes_are_found(rule, old, new):
    lesson = rules.check_hashes(module_with("prefix-hash", (old, new)))
    assert lesson.rule is getattr(rules, rule), "\n".join(lesson.lines())


WRONG_POOLS = [
    (pool.FINDS, "break", "continue"),
    (pool.FINDS, "break", "return []"),
    (pool.TELLS, "hit(block)", "pass"),
    (pool.NUM_FREE, "self._evictable.remove(block)", "pass"),
    (pool.CHECK_PASSES, "references[block] += 1", "pass"),
    (pool.CHECK_PASSES, "references[block] += 1", "references[block] = 1"),
    (
        pool.CHECK_PASSES,
        "blocks.append(block)",
        "blocks.append(block); self._references[block] += 1",
    ),
    (RAISES, "if references[block] == 0:", "if references[block] == 1:"),
]


@pytest.mark.breaks("prefix-hash")
@pytest.mark.parametrize(("rule", "old", "new"), WRONG_POOLS)
def test_wrong_sharing_is_found(rule, old, new):
    lesson = rules.check_hashes(module_with("prefix-hash", (old, new)))
    assert lesson.rule is rule, "\n".join(lesson.lines())
