"""From a plan to the arrays that the model computes on."""

from array import array
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
LOGITS_AT_A_TIME = 256
"""Maximum number of prompt positions whose logits exist at once: one row of them can hold 150,000
numbers."""
UNKNOWN = array("i", [0])
"""Stands for a pending token."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input: the tokens of all requests behind one another, without padding.

    ::

    requests      A            B  C          R = 3
    num_new       4            1  1
    input_ids     a4 a5 a6 a7  b9 c2         T = 6
    positions      4  5  6  7   9  2
    query_starts   0            4  5  6      R + 1
    seq_lens      8            10  3
    logit_indices           3   4  5         (if all three sample)
    """

    input_ids: IntArray
    """``[T]``"""
    positions: IntArray
    """``[T]``: each token's place in its own request."""
    slot_mapping: IntArray
    """``[T]``: where its keys and values go, ``block * block_size + offset``."""
    query_starts: IntArray
    """``[R + 1]``: request ``r`` has the tokens from ``query_starts[r]`` to ``[r + 1]``."""
    seq_lens: IntArray
    """``[R]``: how many tokens of the request are in the cache after this step."""
    block_tables: Int32Array
    """``[R, most blocks of one request]``, padded with 0."""
    logit_indices: IntArray
    """``[N]``: the tokens whose logits are sampled from, the last of each request that samples."""
    sampling: list[Request]
    """``[N]``: the requests that these logits belong to."""
    wants_all_logits: bool
    """Whether somebody asks for the log-probabilities of a prompt."""
    rows: IntArray
    """``[R]``: the requests' rows in what a GPU keeps of them; see ``row_table``."""
    pending: IntArray
    """``[P]``: the requests whose last token is being sampled by the step before. It is 0 in
    ``input_ids``; the GPU has it."""

    @property
    def decodes(self) -> IntArray:
        """Indices of the requests that decode: those that compute a single token."""
        return np.flatnonzero(self.num_new == 1)

    @property
    def prefills(self) -> IntArray:
        """Indices of the requests that compute several tokens, which are parts of prompts."""
        return np.flatnonzero(self.num_new != 1)

    @property
    def num_new(self) -> IntArray:
        """``[R]``: how many tokens of each request are computed."""
        return np.diff(self.query_starts)


def build_batch(plan: Plan, block_size: int) -> Batch:
    """Lay out a (non-empty) plan; cost grows with its tokens and blocks, and with nothing else."""
    scheduled = plan.scheduled
    starts = np.array([entry.start for entry in scheduled])
    num_new = np.array([entry.num_new for entry in scheduled])
    query_starts = np.array([0, *accumulate(entry.num_new for entry in scheduled)])
    row = np.repeat(np.arange(len(scheduled)), num_new)
    positions = np.arange(query_starts[-1]) - (query_starts[:-1] - starts)[row]
    block_tables = _pad_block_tables([entry.request for entry in scheduled])
    seq_lens = starts + num_new
    samples = np.array([entry.samples for entry in scheduled])
    ends_pending = seq_lens > np.array([entry.request.num_tokens for entry in scheduled])
    return Batch(
        input_ids=_join_new_tokens(plan),
        positions=positions,
        slot_mapping=slots(block_tables, row, positions, block_size),
        query_starts=query_starts,
        seq_lens=seq_lens,
        block_tables=block_tables,
        logit_indices=query_starts[1:][samples] - 1,
        sampling=plan.sampling,
        wants_all_logits=any(
            entry.request.params.prompt_logprobs is not None for entry in scheduled
        ),
        rows=np.array([entry.request.row for entry in scheduled]),
        pending=np.flatnonzero(ends_pending),
    )


def slots(
    block_tables: Int32Array, row: IntArray, positions: IntArray, block_size: int
) -> IntArray:
    """The one formula for slots: where the tokens at ``positions`` of the requests ``row`` go."""
    block = block_tables[row, positions // block_size].astype(np.int64)
    return block * block_size + positions % block_size


def _join_new_tokens(plan: Plan) -> IntArray:
    chunks = (
        # Of those in a step at most the last token is pending.
        entry.request.token_ids[entry.start : entry.start + entry.num_new] or UNKNOWN
        for entry in plan.scheduled
    )
    return np.frombuffer(b"".join(chunks), dtype=np.int32).astype(np.int64)


def _pad_block_tables(requests: list[Request]) -> Int32Array:
    lengths = np.array([len(request.block_table) for request in requests])
    joined = np.frombuffer(b"".join(request.block_table for request in requests), dtype=np.int32)
    padded = np.zeros((len(requests), lengths.max()), dtype=np.int32)
    padded[np.arange(lengths.max()) < lengths[:, None]] = joined
    return padded
