"""Log-probabilities on the GPU: one pass over the logits, and a few reads for each top token.

The vocabulary is cut into chunks, and these into groups of 128 tokens::

    logits [N, V]     chunk 0 │ chunk 1 │ chunk 2 …
    1. scan           of each chunk: the peak, the sum of exp(logit - peak), and how many tokens are
                      at least as probable as the chosen one; of each group: its best token
    2. find           the best of all groups' best tokens; then the best of what is left, …

An integer, the *order key*, stands for a token: the larger of two keys has the larger logit or, if
these are equal, comes first in the vocabulary::

    key               logit's bits, changed to be in order (32) │ last id - token id (20)

The top tokens are those of a tournament. Each group sends its best token, so the best of these is
the most probable of all. Its group then sends its next best one, for which 128 logits are read. So
one token more costs as much as any other, and a row stops when it has as many as it asks for.

One pass finds both the sum and the best tokens, as in Milakov and Gimelshein, *Online normalizer
calculation for softmax*, 2018, section 4. Nothing as long as the vocabulary is written. Bytes: the
logits once; with 256 rows and 151,936 tokens in 16 bits they are 78 MB.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.sampling import logprobs as plain
from minimal_vllm.sampling.kernels.filters import LAST_TOKEN, MAX_VOCAB_SIZE, TOKEN_BITS
from minimal_vllm.sampling.kernels.weights import load_chunks, load_logits
from minimal_vllm.sampling.logprobs import AskedLogprobs

CHUNK = 4096
"""Tokens of the vocabulary per program."""
GROUP = 128
"""Tokens per group."""
MAX_TOP = 256
"""Maximum number of top tokens of a row that are found one after the other. More are sorted."""

NOTHING = tl.constexpr(-(2**63))
"""Order key that comes after those of all tokens."""


def find_logprobs(logits: Tensor, tokens: Tensor, asked: AskedLogprobs) -> Tensor:
    """Find the log-probabilities that some rows ask for; see ``plain.find_logprobs``.

    Args:
        logits: ``[N, V]``, contiguous, of any floating dtype.
        tokens: ``[N]`` int64: the rows' chosen tokens.
        asked: what the rows ask for, at least one of them.
    """
    vocab_size = logits.shape[1]
    if asked.max_top > MAX_TOP or vocab_size > MAX_VOCAB_SIZE:
        return plain.find_logprobs(logits, tokens, asked)
    count, device = len(asked.rows), logits.device
    chunks, options = triton.cdiv(vocab_size, CHUNK), launch_options(logits)
    groups = chunks * (CHUNK // GROUP)
    peaks = torch.empty(count, chunks, device=device)
    sums = torch.empty_like(peaks)
    best = torch.empty(count, groups, dtype=torch.int64, device=device)
    ahead = torch.empty(count, 1 + asked.max_named, chunks, dtype=torch.int32, device=device)
    found = torch.empty(count, 3, asked.width, dtype=torch.int32, device=device)
    _scan_kernel[(count, chunks)](
        logits, tokens, asked.numbers, peaks, sums, best, ahead,
        vocab_size, chunks, asked.max_named, CHUNK=CHUNK, GROUP=GROUP, **options,
    )  # fmt: skip
    _find_kernel[(count,)](
        logits, tokens, asked.numbers, peaks, sums, best, ahead, found,
        vocab_size, chunks, groups, asked.max_named, asked.width,
        CHUNKS=triton.next_power_of_2(chunks), GROUPS=triton.next_power_of_2(groups), GROUP=GROUP,
        num_warps=8, **options,
    )  # fmt: skip
    return found


@triton.jit(do_not_specialize=["max_named"], do_not_specialize_on_alignment=["tokens", "asked"])
def _scan_kernel(
    logits,
    tokens,
    asked,
    peaks,
    sums,
    best,
    ahead,
    vocab_size,
    chunks,
    max_named,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    place, chunk = tl.program_id(0), tl.program_id(1)
    asks = asked + place * (2 + max_named)
    row, num_named = _row_and_named(asks, max_named)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    values = load_logits(logits, row, token, vocab_size)
    peak = tl.max(values)
    weights = tl.where(values == -float("inf"), 0.0, tl.exp(values - peak))
    tl.store(peaks + place * chunks + chunk, peak)
    tl.store(sums + place * chunks + chunk, tl.sum(weights))

    GROUPS: tl.constexpr = CHUNK // GROUP
    keys = tl.reshape(_order_key(values, token), (GROUPS, GROUP))
    first = (place * chunks + chunk) * GROUPS
    tl.store(best + first + tl.arange(0, GROUPS), tl.max(keys, axis=1))

    for index in range(1 + num_named):
        value = _logit(logits, row, _named(tokens, asks, row, index), vocab_size)
        is_ahead = (values >= value) & (token < vocab_size)
        place_and_index = place * (1 + max_named) + index
        tl.store(ahead + place_and_index * chunks + chunk, tl.sum(is_ahead.to(tl.int32)))


@triton.jit(
    do_not_specialize=["max_named", "width"], do_not_specialize_on_alignment=["tokens", "asked"]
)
def _find_kernel(
    logits,
    tokens,
    asked,
    peaks,
    sums,
    best,
    ahead,
    found,
    vocab_size,
    chunks,
    groups,
    max_named,
    width,
    CHUNKS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    place = tl.program_id(0)
    asks = asked + place * (2 + max_named)
    row, num_named = _row_and_named(asks, max_named)
    ids = found + place * 3 * width
    chunk_peaks = load_chunks(peaks, place, chunks, -float("inf"), CHUNKS)
    peak = tl.max(chunk_peaks)
    of_chunks = load_chunks(sums, place, chunks, 0.0, CHUNKS) * tl.exp(chunk_peaks - peak)
    log_total = tl.log(tl.sum(of_chunks))

    for index in range(1 + num_named):
        token = _named(tokens, asks, row, index)
        logprob = _logit(logits, row, token, vocab_size) - peak - log_total
        in_chunks = load_chunks(ahead, place * (1 + max_named) + index, chunks, 0, CHUNKS)
        _store(ids + index, width, token, logprob, tl.sum(in_chunks))

    group = tl.arange(0, GROUPS)
    keys = tl.load(best + place * groups + group, mask=group < groups, other=NOTHING)
    for rank in range(1, 1 + tl.load(asks + 1)):
        key = tl.max(keys)
        token = ((key & LAST_TOKEN) ^ LAST_TOKEN).to(tl.int32)
        _store(ids + rank, width, token, _logit_of(key) - peak - log_total, rank)
        winner = token // GROUP
        member = winner * GROUP + tl.arange(0, GROUP)
        others = _order_key(load_logits(logits, row, member, vocab_size), member)
        next_key = tl.max(tl.where(others < key, others, NOTHING))
        keys = tl.where(group == winner, next_key, keys)


@triton.jit
def _row_and_named(asks, max_named):
    """Return the row that asks, and how many tokens it names; none if it asks for top tokens."""
    return tl.load(asks), tl.where(tl.load(asks + 1) > 0, 0, max_named)


@triton.jit
def _named(tokens, asks, row, index):
    """Return the chosen token of a row (index 0), or one that the row names; 0 if there is none."""
    named = tl.load(asks + 1 + index)
    return tl.maximum(tl.where(index == 0, tl.load(tokens + row).to(tl.int32), named), 0)


@triton.jit
def _logit(logits, row, token, vocab_size):
    """Return the logit of one token."""
    return tl.load(logits + row.to(tl.int64) * vocab_size + token).to(tl.float32)


@triton.jit
def _store(place, width, token, logprob, rank):
    """Store a token's id, log-probability and rank, each in a part of its own."""
    tl.store(place, token)
    tl.store(place + width, logprob.to(tl.int32, bitcast=True))
    tl.store(place + 2 * width, rank)


@triton.jit
def _order_key(values, token):
    """Return the order keys, int64, of tokens with these logits."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)  # -0 + 0 is 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << TOKEN_BITS) | (token ^ LAST_TOKEN)  # last id - token id


@triton.jit
def _logit_of(key):
    """Return the logit in an order key."""
    ordered = (key >> TOKEN_BITS).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
