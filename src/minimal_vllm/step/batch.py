"""Laying out a plan as the arrays that the model computes on."""

from array import array
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from minimal_vllm.step.plan import Plan, is_decode
from minimal_vllm.step.request import Request

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
LOGITS_AT_A_TIME = 256
"""Maximum number of prompt positions whose logits exist at once. One row of logits is as long as
the vocabulary, which can have 150,000 tokens."""
UNKNOWN = array("i", [0])
"""Placeholder for a pending token, whose id is not known yet."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input: the new tokens of all requests, concatenated without padding.

    ::

    requests      A            B  C          R = 3
    num_new       4            1  1
    input_ids     a4 a5 a6 a7  b9 c2         T = 6
    positions      4  5  6  7   9  2
    query_starts   0            4  5  6      R + 1
    seq_lens      8            10  3
    logit_indices           3   4  5         (if all three sample one token)
    """

    input_ids: IntArray
    """``[T]``: token ids."""
    positions: IntArray
    """``[T]``: position of each token in its own request."""
    slot_mapping: IntArray
    """``[T]``: slot for the token's keys and values, ``block * block_size + offset``."""
    query_starts: IntArray
    """``[R + 1]``: request ``r`` has the tokens from ``query_starts[r]`` up to, and not including,
    ``query_starts[r + 1]``."""
    seq_lens: IntArray
    """``[R]``: number of the request's tokens in the KV cache after this step."""
    block_tables: Int32Array
    """``[R, B]``: block ids, padded with 0 to the longest block table, ``B`` blocks. ``NO_BLOCK``
    where the window has passed the tokens."""
    logit_indices: IntArray
    """``[N]``: indices of the tokens whose logits are sampled from: the last ``num_logits`` tokens
    of each request."""
    sampling: list[Request]
    """Requests that sample, in order. Each owns its next ``num_logits`` rows of the ``N``
    logits."""
    wants_all_logits: bool
    """True if any request asks for the log-probabilities of its prompt."""
    rows: IntArray
    """``[R]``: the requests' rows in the GPU's table of running requests, ``RowTable``."""
    pending: IntArray
    """``[P]``: indices of the requests whose last token is still being sampled by the previous
    step. ``input_ids`` has a 0 in its place; the GPU fills it in."""

    @property
    def decodes(self) -> IntArray:
        """Indices of the requests that decode."""
        return np.flatnonzero(is_decode(self.num_new))

    @property
    def prefills(self) -> IntArray:
        """Indices of the requests that compute several tokens, which are parts of prompts."""
        return np.flatnonzero(~is_decode(self.num_new))

    @property
    def num_new(self) -> IntArray:
        """Number of tokens computed for each request, ``[R]``."""
        return np.diff(self.query_starts)


def build_batch(plan: Plan, block_size: int, num_groups: int = 1) -> Batch:
    """Lay out a plan as arrays.

    The cost is linear in the number of tokens computed and the number of blocks in the tables.

    Args:
        plan: plan of the step, which must not be empty.
        block_size: tokens per KV block.
        num_groups: number of groups of layers; the batch has the blocks of the first group.
    """
    scheduled = plan.scheduled
    starts = np.array([entry.start for entry in scheduled])
    num_new = np.array([entry.num_new for entry in scheduled])
    query_starts = np.array([0, *accumulate(entry.num_new for entry in scheduled)])
    row = np.repeat(np.arange(len(scheduled)), num_new)
    positions = np.arange(query_starts[-1]) - (query_starts[:-1] - starts)[row]
    block_tables = _pad_block_tables([entry.request for entry in scheduled])[:, ::num_groups]
    seq_lens = starts + num_new
    num_logits = np.array([entry.num_logits for entry in scheduled])
    ends_pending = seq_lens > np.array([entry.request.num_tokens for entry in scheduled])
    return Batch(
        input_ids=_join_new_tokens(plan, int(query_starts[-1])),
        positions=positions,
        slot_mapping=slots(block_tables, row, positions, block_size),
        query_starts=query_starts,
        seq_lens=seq_lens,
        block_tables=block_tables,
        logit_indices=_last_indices(query_starts[1:], num_logits),
        sampling=plan.sampling,
        wants_all_logits=any(
            entry.request.params.prompt_logprobs is not None for entry in scheduled
        ),
        rows=np.array([entry.request.row for entry in scheduled]),
        pending=np.flatnonzero(ends_pending),
    )


def build_batches(plan: Plan, block_size: int, num_groups: int) -> list[Batch]:
    """Return a batch for each group of layers. They differ only in block tables and slots."""
    batch = build_batch(plan, block_size, num_groups)
    if num_groups == 1:
        return [batch]
    tables = _pad_block_tables([entry.request for entry in plan.scheduled])
    row = np.repeat(np.arange(len(tables)), batch.num_new)
    batches = []
    for group in range(num_groups):
        own = np.ascontiguousarray(tables[:, group::num_groups])
        slot_mapping = slots(own, row, batch.positions, block_size)
        batches.append(replace(batch, block_tables=own, slot_mapping=slot_mapping))
    return batches


def slots(
    block_tables: Int32Array, row: IntArray, positions: IntArray, block_size: int
) -> IntArray:
    """Return the cache slots of tokens. Every slot in the engine is computed by this formula.

    Args:
        block_tables: ``[R, B]``.
        row: ``[T]``: index of each token's request in ``block_tables``.
        positions: ``[T]``: position of each token in its request.
        block_size: tokens per KV block.
    """
    block = block_tables[row, positions // block_size].astype(np.int64)
    return block * block_size + positions % block_size


def _last_indices(ends: IntArray, counts: IntArray) -> IntArray:
    """Return the last ``counts[r]`` indices before ``ends[r]``, for all requests ``r`` in order."""
    if counts.max() <= 1:  # as in every step without guesses
        return ends[counts > 0] - 1
    # Of the indices of one request, the last one is 1 before the end, the one before it 2, …
    before_end = np.repeat(np.cumsum(counts), counts) - np.arange(counts.sum())
    return np.repeat(ends, counts) - before_end


def _join_new_tokens(plan: Plan, num_tokens: int) -> IntArray:
    """Concatenate the new tokens of all requests, ``num_tokens`` in all."""
    chunks = [
        entry.request.token_ids[entry.start : entry.start + entry.num_new]
        for entry in plan.scheduled
    ]
    joined = b"".join(chunks)
    if len(joined) < num_tokens * UNKNOWN.itemsize:  # a list ends before a guess or a pending token
        for chunk, entry in zip(chunks, plan.scheduled, strict=True):
            chunk.extend(entry.guesses)
            chunk.extend(UNKNOWN * (entry.num_new - len(chunk)))
        joined = b"".join(chunks)
    return np.frombuffer(joined, dtype=np.int32).astype(np.int64)


def _pad_block_tables(requests: list[Request]) -> Int32Array:
    lengths = np.array([len(request.block_table) for request in requests])
    joined = np.frombuffer(b"".join(request.block_table for request in requests), dtype=np.int32)
    padded = np.zeros((len(requests), lengths.max()), dtype=np.int32)
    padded[np.arange(lengths.max()) < lengths[:, None]] = joined
    return padded


def enumerate_runs(lengths: IntArray) -> tuple[IntArray, IntArray]:
    """Number the elements of runs: lengths ``[2, 1, 3]`` are runs ``[0, 0, 1, 2, 2, 2]``.

    Returns:
        The run of each element, and its index in the run, here ``[0, 1, 0, 0, 1, 2]``.
    """
    run = np.repeat(np.arange(len(lengths)), lengths)
    return run, np.arange(len(run)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
