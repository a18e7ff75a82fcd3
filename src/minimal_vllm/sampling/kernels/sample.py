"""Sampling without leaving the GPU: a few passes over the logits.

The same decision as the sampler's in ``sampling/sampler.py``, and the same arithmetic (``draw``'s
integer weights, one random number per row from a counter), cut into chunks of the vocabulary so
that all processors work::

    logits [N, V]     chunk 0 │ chunk 1 │ chunk 2 …
    1. peaks          highest logit of each chunk, and where; and of each group of 128 tokens
    2. limits         how far behind the peak top_k, top_p and min_p let a row draw: ``filters``
    3. weights        sum of 2**40 * exp((logit - peak) / temperature) of each chunk, within limits
    4. choice         the chunk in which the cumulative sum exceeds u * total, and the token in it

Greedy rows (temperature 0) are done after the first pass, and rows without filters skip the second.
Bytes: the logits once or three times, and what ``filters`` reads; with 256 rows and 150,000 tokens
in 16 bits they are 78 MB, more than stays in the cache.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.sampling.kernels.filters import EVERYTHING, GROUP, find_limits, gap_of, is_kept
from minimal_vllm.sampling.kernels.weights import (
    gaps,
    integer_weights,
    is_sound,
    load_chunks,
    load_logits,
)

CHUNK = 4096
"""Tokens of the vocabulary per program."""


@dataclass(frozen=True, slots=True)
class SamplingInputs:
    """What the sampler must know of some rows beside their logits."""

    temperature: Tensor
    """``[N]`` float32; 0: the most probable token."""
    seeds: Tensor
    """``[N]`` int64."""
    places: Tensor
    """``[N]`` int64: of each row's token in its output."""
    top_k: Tensor
    """``[N]`` int32; 0 or less: all."""
    top_p: Tensor
    """``[N]`` float64; 1: all."""
    min_p: Tensor
    """``[N]`` float32: its logarithm; -inf: all."""


def sample_rows(logits: Tensor, known: SamplingInputs, tokens: Tensor) -> None:
    """Choose a token for each row; ``NO_TOKEN`` where the highest logit is not finite.

    Args:
        logits: ``[N, V]``, contiguous.
        known: of these rows.
        tokens: ``[N]`` int64, written.
    """
    rows, vocab_size = logits.shape
    options = launch_options(logits)
    chunks = triton.cdiv(vocab_size, CHUNK)
    peaks = known.temperature.new_empty(rows, chunks)
    group_peaks = known.temperature.new_empty(rows, chunks * (CHUNK // GROUP))
    peak_tokens = known.seeds.new_empty(rows, chunks)
    weights = known.seeds.new_empty(rows, chunks)
    _peaks_kernel[(rows, chunks)](
        logits, peaks, peak_tokens, group_peaks, vocab_size, chunks,
        CHUNK=CHUNK, GROUP=GROUP, **options,
    )  # fmt: skip
    limits = find_limits(
        logits, peaks, group_peaks, known.temperature, known.top_k, known.top_p, known.min_p
    )
    _weights_kernel[(rows, chunks)](
        logits, peaks, known.temperature, limits, weights, vocab_size, chunks,
        CHUNK=CHUNK, CHUNKS=triton.next_power_of_2(chunks), **options,
    )  # fmt: skip
    _choose_kernel[(rows,)](
        logits, peaks, peak_tokens, weights, limits, known.temperature, known.seeds, known.places,
        tokens, vocab_size, chunks, CHUNK=CHUNK, CHUNKS=triton.next_power_of_2(chunks), **options,
    )  # fmt: skip


@triton.jit
def _peaks_kernel(
    logits,
    peaks,
    peak_tokens,
    group_peaks,
    vocab_size,
    chunks,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    row, chunk = tl.program_id(0), tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    values = load_logits(logits, row, token, vocab_size)
    peak = tl.max(values)
    is_peak = values == peak
    # A NaN compares unequal to all: it must come out as the peak.
    peak = tl.where(tl.max((values != values).to(tl.int32)) > 0, float("nan"), peak)
    tl.store(peaks + row * chunks + chunk, peak)
    tl.store(peak_tokens + row * chunks + chunk, tl.min(tl.where(is_peak, token, vocab_size)))
    GROUPS: tl.constexpr = CHUNK // GROUP
    first = (row * chunks + chunk) * GROUPS
    highest = tl.max(tl.reshape(values, (GROUPS, GROUP)), axis=1)
    tl.store(group_peaks + first + tl.arange(0, GROUPS), highest)


@triton.jit(do_not_specialize_on_alignment=["temperature", "limits"])
def _weights_kernel(
    logits,
    peaks,
    temperature,
    limits,
    weights,
    vocab_size,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    row, chunk = tl.program_id(0), tl.program_id(1)
    heat = tl.load(temperature + row)
    if heat == 0.0:
        return
    peak = tl.max(load_chunks(peaks, row, chunks, -float("inf"), CHUNKS))
    limit = tl.load(limits + row)
    if gaps(tl.load(peaks + row * chunks + chunk), peak, heat) > gap_of(limit):
        tl.store(weights + row * chunks + chunk, 0)  # all of the chunk is beyond
        return
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    values = load_logits(logits, row, token, vocab_size)
    if limit == EVERYTHING:
        total = tl.sum(_kept_weights(values, token, peak, heat, limit, False))
    else:
        total = tl.sum(_kept_weights(values, token, peak, heat, limit, True))
    tl.store(weights + row * chunks + chunk, total)


@triton.jit(do_not_specialize_on_alignment=["limits", "temperature", "seeds", "places", "tokens"])
def _choose_kernel(
    logits,
    peaks,
    peak_tokens,
    weights,
    limits,
    temperature,
    seeds,
    places,
    tokens,
    vocab_size,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_previous(EARLY)
    row = tl.program_id(0)
    all_peaks = load_chunks(peaks, row, chunks, -float("inf"), CHUNKS)
    peak = tl.max(all_peaks)
    if not is_sound(all_peaks):
        tl.store(tokens + row, -1)  # NO_TOKEN
        return
    heat = tl.load(temperature + row)
    if heat == 0.0:
        first = load_chunks(peak_tokens, row, chunks, vocab_size, CHUNKS)
        tl.store(tokens + row, tl.min(tl.where(all_peaks == peak, first, vocab_size)))
        return
    in_chunk = load_chunks(weights, row, chunks, 0, CHUNKS)
    up_to = tl.cumsum(in_chunk)
    total = tl.sum(in_chunk)
    target = (_uniform(tl.load(seeds + row), tl.load(places + row)) * total.to(tl.float64)).to(
        tl.int64
    )
    chunk = tl.sum((up_to <= target).to(tl.int32))
    before = tl.sum(tl.where(tl.arange(0, CHUNKS) < chunk, in_chunk, 0))
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    values = load_logits(logits, row, token, vocab_size)
    limit = tl.load(limits + row)
    if limit == EVERYTHING:
        inside = tl.cumsum(_kept_weights(values, token, peak, heat, limit, False))
    else:
        inside = tl.cumsum(_kept_weights(values, token, peak, heat, limit, True))
    tl.store(tokens + row, chunk * CHUNK + tl.sum((inside <= target - before).to(tl.int32)))


@triton.jit
def _kept_weights(values, token, peak, heat, limit, HAS_LIMIT: tl.constexpr):
    """Of some tokens of a row; 0 for those beyond its limit."""
    if HAS_LIMIT:
        gap = gaps(values, peak, heat)
        return tl.where(is_kept(gap, token, limit), integer_weights(gap), 0)
    else:  # noqa: RET505 - the compiler wants it so
        # Nothing is compared, so the faster division will do, which is off by a bit or two.
        return integer_weights((peak - values) / tl.minimum(heat, 1e6))


@triton.jit
def _uniform(seed, place):
    """See ``uniform.uniforms``."""
    count = place.to(tl.uint64) + 1
    bits = _mix(_mix(seed.to(tl.uint64)) + count * 0x9E3779B97F4A7C15)
    return (bits >> 11).to(tl.float64) * 1.1102230246251565e-16  # 2**-53


@triton.jit
def _mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)
