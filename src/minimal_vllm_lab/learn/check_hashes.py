"""Check of the exercise prefix-hash: which blocks must have equal hashes, and which must not."""

from array import array
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.pool import check_pool
from minimal_vllm_lab.check.search import History, find_lesson, find_mistake

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

CHAPTER = "06-prefix-caching"
FULL = Rule(
    "There is one hash per full block, and none for a partly filled one.",
    "A partly filled block will change. Only a block that can't change may be shared.",
    CHAPTER,
)
SAME = Rule(
    "Equal prefixes have equal hashes, whatever follows them and however they were computed.",
    "Otherwise cached blocks are not found. A text grows token by token: hashes are appended as "
    "blocks become full, and existing hashes stay.",
    CHAPTER,
)
DIFFERENT = Rule(
    "Blocks have different hashes if their texts up to their ends differ, or their salts.",
    "A key depends on all earlier tokens: the same 16 tokens after another prefix have other keys "
    "and values. A request that finds such a block would read another text.",
    CHAPTER,
)
TWO_SALTS = ("", "s")
SAME_DIGITS = (2, [1, 21], [12, 1])
"""A block size and two texts whose token ids are the same if written one after the other."""


def check_hashes(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Check ``extend_block_hashes``, and then check ``MyPool`` as a block pool.

    Returns:
        A lesson about a broken rule, or None if all hold.
    """

    def run(case: tuple[int, list[int], list[int]], history: History) -> None:
        block_size, one, other = case
        texts: dict[bytes, tuple[str, list[int]]] = {}
        for tokens in (one, other):
            for salt in TWO_SALTS:
                _check(module, tokens, block_size, salt, texts, history)

    return (
        find_lesson(_cases(), run, examples=200, seed=seed)
        or find_mistake(partial(run, SAME_DIGITS))
        or check_pool(module.MyPool, seed=seed)
    )


def _cases() -> "SearchStrategy[tuple[int, list[int], list[int]]]":
    from hypothesis import strategies as st

    tokens = st.lists(st.sampled_from([1, 2, 257]), max_size=9)  # 257 is 1 in a byte
    return st.tuples(st.sampled_from([1, 2, 3]), tokens, tokens)


def _check(
    module: ModuleType,
    tokens: list[int],
    block_size: int,
    salt: str,
    texts: dict[bytes, tuple[str, list[int]]],
    history: History,
) -> None:
    hashes: list[bytes] = []
    history.note(f"hashes = []; extend_block_hashes(hashes, {tokens}, {block_size}, b'{salt}')")
    module.extend_block_hashes(hashes, array("i", tokens), block_size, salt.encode())
    if len(hashes) != len(tokens) // block_size:
        raise Broken(FULL, f"{len(hashes)} hashes", f"{len(tokens) // block_size}")
    gradually: list[bytes] = []
    for end in range(len(tokens) + 1):
        module.extend_block_hashes(gradually, array("i", tokens[:end]), block_size, salt.encode())
    if len(gradually) != len(hashes):
        raise Broken(
            SAME, f"{len(gradually)} hashes if the text grows token by token", f"{len(hashes)}"
        )
    if gradually != hashes:
        raise Broken(SAME, "different hashes if the text grows token by token")
    for index, block_hash in enumerate(hashes):
        text = (salt, tokens[: (index + 1) * block_size])
        if texts.setdefault(block_hash, text) != text:
            raise Broken(
                DIFFERENT, f"the same hash for {texts[block_hash]} and {text} (salt, tokens)"
            )
    for known, (known_salt, known_tokens) in texts.items():
        index = len(known_tokens) // block_size - 1
        begins_alike = (known_salt, known_tokens) == (salt, tokens[: len(known_tokens)])
        if begins_alike and hashes[index] != known:
            raise Broken(SAME, f"two hashes for block {index} of {known_tokens}")
