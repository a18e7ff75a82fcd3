"""The check of prefix-hash: what names must tell apart, and what they must not."""

from array import array
from types import ModuleType
from typing import TYPE_CHECKING

from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.pool import check_pool
from minimal_vllm_lab.check.search import History, find_lesson

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

CHAPTER = "06-prefix-caching"
FULL = Rule(
    "There is one hash for each full block, and none for the rest.",
    "A block that is not full will change; only what can't change may be shared.",
    CHAPTER,
)
SAME = Rule(
    "Equal beginnings have equal hashes, whatever comes behind, and however they were computed.",
    "Else what is cached is not found. A text grows token by token: hashes are appended as blocks "
    "become full, and those that are there stay.",
    CHAPTER,
)
DIFFERENT = Rule(
    "Blocks whose texts up to their end differ, or their salts, have different hashes.",
    "A key depends on all tokens before it: the same 16 tokens behind another beginning have other "
    "keys and values. Who found them would read another text.",
    CHAPTER,
)
TWO_SALTS = ("", "s")


def check_hashes(module: ModuleType) -> Lesson | None:
    """Hold ``extend_block_hashes`` to its rules, and then ``MyPool`` to those of a pool."""

    def run(case: tuple[int, list[int], list[int]], history: History) -> None:
        block_size, one, other = case
        names: dict[bytes, tuple[str, list[int]]] = {}
        for tokens in (one, other):
            for salt in TWO_SALTS:
                _check(module, tokens, block_size, salt, names, history)

    return find_lesson(_cases(), run, examples=200) or check_pool(module.MyPool)


def _cases() -> "SearchStrategy[tuple[int, list[int], list[int]]]":
    from hypothesis import strategies as st

    tokens = st.lists(st.sampled_from([1, 2, 259]), max_size=9)  # 259 is 3, if cut to a byte
    return st.tuples(st.sampled_from([1, 2, 3]), tokens, tokens)


def _check(
    module: ModuleType,
    tokens: list[int],
    block_size: int,
    salt: str,
    names: dict[bytes, tuple[str, list[int]]],
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
    if gradually != hashes:
        raise Broken(SAME, "other hashes if the text grows token by token")
    for index, block_hash in enumerate(hashes):
        text = (salt, tokens[: (index + 1) * block_size])
        if names.setdefault(block_hash, text) != text:
            raise Broken(DIFFERENT, f"one hash for {names[block_hash]} and {text} (salt, tokens)")
    for known, (known_salt, known_tokens) in names.items():
        index = len(known_tokens) // block_size - 1
        begins_alike = (known_salt, known_tokens) == (salt, tokens[: len(known_tokens)])
        if begins_alike and hashes[index] != known:
            raise Broken(SAME, f"two hashes for block {index} of {known_tokens}")
