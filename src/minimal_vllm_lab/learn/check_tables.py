"""Check of the exercise block-table: slots, compared with the formula token by token."""

from array import array
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.request import Request
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_lesson

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

CHAPTER = "04-block-tables"
PADDED = Rule(
    "Each row holds a request's blocks, followed by zeros. The dtype is int32.",
    "A kernel gets one array for all requests.",
    CHAPTER,
)
SLOT = Rule(
    "slot = table[position // block_size] * block_size + position % block_size",
    "A key that is written to another slot overwrites another token's key, and is never found "
    "again.",
    CHAPTER,
)
WRITTEN = Rule(
    "Each token's key and value are in its slot, for all kv heads, and all other slots are "
    "unchanged.",
    "Attention reads them from there in all later steps.",
    CHAPTER,
)
Case = tuple[int, list[tuple[int, int]]]
"""The block size, and the number of computed and of new tokens per request."""


def check_tables(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Compare ``pad_block_tables``, ``slots`` and ``write_to_cache`` with plain loops.

    Returns:
        A lesson about a difference, or None.
    """

    def run(case: Case, history: History) -> None:
        block_size, lengths = case
        tables = _tables(block_size, lengths)
        history.note(f"block_size = {block_size}")
        for table, (cached, new) in zip(tables, lengths, strict=True):
            history.note(f"block table {table}: {cached} computed tokens, {new} new ones")
        padded = _check_padding(module, tables, history)
        found = _check_slots(module, padded, tables, case, history)
        _check_writing(module, found, block_size)

    return find_lesson(_cases(), run, examples=100, seed=seed)


def _cases() -> "SearchStrategy[Case]":
    from hypothesis import strategies as st

    lengths = st.tuples(st.sampled_from([0, 3, 4, 5, 8]), st.sampled_from([1, 2, 4, 9]))
    return st.tuples(st.sampled_from([4, 1, 16]), st.lists(lengths, min_size=1, max_size=4))


def _tables(block_size: int, lengths: list[tuple[int, int]]) -> list[list[int]]:
    """Return block tables with unordered block ids, some of which are unused."""
    needed = [-(-(cached + new) // block_size) for cached, new in lengths]
    ids = [(5 * index + 2) % 97 for index in range(sum(needed))]
    return [[ids.pop() for _ in range(count)] for count in needed]


def _check_padding(module: ModuleType, tables: list[list[int]], history: History) -> Any:
    params = SamplingParams()
    requests = [Request(str(i), array("i", [0]), 1, params, i) for i in range(len(tables))]
    for request, table in zip(requests, tables, strict=True):
        request.block_table.extend(table)
    history.note("pad_block_tables(requests)")
    padded = module.pad_block_tables(requests)
    width = max(map(len, tables))
    expected = [table + [0] * (width - len(table)) for table in tables]
    if np.asarray(padded).tolist() != expected:
        raise Broken(PADDED, f"{np.asarray(padded).tolist()}", f"{expected}")
    if _dtype(padded) != "int32":
        raise Broken(PADDED, f"dtype {_dtype(padded)}", "int32")
    return padded


def _check_slots(
    module: ModuleType, padded: Any, tables: list[list[int]], case: Case, history: History
) -> list[int]:
    block_size, lengths = case
    tokens = [
        (row, position)
        for row, (cached, new) in enumerate(lengths)
        for position in range(cached, cached + new)
    ]
    rows, positions = (np.array(each) for each in zip(*tokens, strict=True))
    history.note(
        f"slots(padded, row={rows.tolist()}, positions={positions.tolist()}, {block_size})"
    )
    found = module.slots(padded, rows, positions, block_size)
    expected = [
        tables[row][position // block_size] * block_size + position % block_size
        for row, position in tokens
    ]
    if np.asarray(found).tolist() != expected:
        raise Broken(SLOT, f"{np.asarray(found).tolist()}", f"{expected}")
    if _dtype(found) != "int64":
        raise Broken(SLOT, f"dtype {_dtype(found)}", "int64: a large cache has many slots")
    return expected


def _dtype(array: object) -> str:
    """Return the name of an array's dtype, or of the type of what is no array."""
    return str(array.dtype) if isinstance(array, np.ndarray) else f"of no array: {type(array)}"


def _check_writing(module: ModuleType, slots: list[int], block_size: int) -> None:
    shape = (max(slots) // block_size + 2, 2, block_size, 3)
    cache = LayerCache(torch.full(shape, 7.0), torch.full(shape, 8.0))  # of an earlier request
    expected = LayerCache(*(layer.clone() for layer in cache))
    k, v = torch.rand(2, len(slots), 2, 3, generator=torch.Generator().manual_seed(0)) + 1
    for token, slot in enumerate(slots):
        expected.key[slot // block_size, :, slot % block_size] = k[token]
        expected.value[slot // block_size, :, slot % block_size] = v[token]
    module.write_to_cache(k, v, cache, torch.tensor(slots))
    for name, found, right in zip(("key", "value"), cache, expected, strict=True):
        wrong = (found != right).any(dim=-1).any(dim=1).nonzero().tolist()
        if wrong:
            block, offset = wrong[0]
            raise Broken(
                WRITTEN,
                f"cache.{name}[{block}, :, {offset}] is {found[block, :, offset].tolist()}",
                f"{right[block, :, offset].tolist()}",
            )
