"""Sampling by temperature alone, without leaving the GPU: three passes over the logits.

The same decision as ``draw``'s, which names its source, and the same arithmetic (integer weights,
one random number per row from a counter), cut into chunks of the vocabulary so that all processors
work::

    logits [N, V]     chunk 0 │ chunk 1 │ chunk 2 …
    1. peaks          highest logit of each chunk, and where
    2. weights        sum of 2**40 * exp((logit - peak) / temperature) of each chunk
    3. choice         the chunk in which the cumulative sum exceeds u * total, and the token in it

Greedy rows (temperature 0) are done after the first pass. Bytes: the logits once or three times;
with 256 rows and 150,000 tokens in 16 bits they are 78 MB, more than stays in the cache.
"""

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.launch import launch_options, wait_for_previous

CHUNK = 4096
"""Tokens of the vocabulary per program."""


def sample_by_temperature(
    logits: Tensor, temperature: Tensor, seeds: Tensor, places: Tensor, tokens: Tensor
) -> None:
    """Choose a token for each row; ``NO_TOKEN`` where the highest logit is not finite.

    Args:
        logits: ``[N, V]``, contiguous.
        temperature: ``[N]`` float32; 0: the most probable token.
        seeds: ``[N]`` int64.
        places: ``[N]`` int64: of each row's token in its output.
        tokens: ``[N]`` int64, written.
    """
    rows, vocab_size = logits.shape
    options = launch_options(logits)
    chunks = triton.cdiv(vocab_size, CHUNK)
    peaks = temperature.new_empty(rows, chunks)
    peak_tokens = seeds.new_empty(rows, chunks)
    weights = seeds.new_empty(rows, chunks)
    _peaks_kernel[(rows, chunks)](
        logits, peaks, peak_tokens, vocab_size, chunks, CHUNK=CHUNK, **options
    )
    _weights_kernel[(rows, chunks)](
        logits, peaks, temperature, weights, vocab_size, chunks,
        CHUNK=CHUNK, CHUNKS=triton.next_power_of_2(chunks), **options,
    )  # fmt: skip
    _choose_kernel[(rows,)](
        logits, peaks, peak_tokens, weights, temperature, seeds, places, tokens,
        vocab_size, chunks, CHUNK=CHUNK, CHUNKS=triton.next_power_of_2(chunks), **options,
    )  # fmt: skip


@triton.jit
def _peaks_kernel(
    logits, peaks, peak_tokens, vocab_size, chunks, CHUNK: tl.constexpr, EARLY: tl.constexpr
):
    wait_for_previous(EARLY)
    row, chunk = tl.program_id(0), tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    values = _load_logits(logits, row, token, vocab_size)
    peak = tl.max(values)
    is_peak = values == peak
    # A NaN compares unequal to all: it must come out as the peak.
    peak = tl.where(tl.max((values != values).to(tl.int32)) > 0, float("nan"), peak)
    tl.store(peaks + row * chunks + chunk, peak)
    tl.store(peak_tokens + row * chunks + chunk, tl.min(tl.where(is_peak, token, vocab_size)))


@triton.jit(do_not_specialize_on_alignment=["temperature"])
def _weights_kernel(
    logits,
    peaks,
    temperature,
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
    peak = tl.max(_load_chunks(peaks, row, chunks, -float("inf"), CHUNKS))
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    values = _load_logits(logits, row, token, vocab_size)
    tl.store(weights + row * chunks + chunk, tl.sum(_integer_weights(values, peak, heat)))


@triton.jit(do_not_specialize_on_alignment=["temperature", "seeds", "places", "tokens"])
def _choose_kernel(
    logits,
    peaks,
    peak_tokens,
    weights,
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
    all_peaks = _load_chunks(peaks, row, chunks, -float("inf"), CHUNKS)
    peak = tl.max(all_peaks)
    is_sound = (tl.max((all_peaks != all_peaks).to(tl.int32)) == 0) & (tl.abs(peak) < float("inf"))
    if not is_sound:
        tl.store(tokens + row, -1)  # NO_TOKEN
        return
    heat = tl.load(temperature + row)
    if heat == 0.0:
        first = _load_chunks(peak_tokens, row, chunks, vocab_size, CHUNKS)
        tl.store(tokens + row, tl.min(tl.where(all_peaks == peak, first, vocab_size)))
        return
    in_chunk = _load_chunks(weights, row, chunks, 0, CHUNKS)
    up_to = tl.cumsum(in_chunk)
    total = tl.sum(in_chunk)
    target = (_uniform(tl.load(seeds + row), tl.load(places + row)) * total.to(tl.float64)).to(
        tl.int64
    )
    chunk = tl.sum((up_to <= target).to(tl.int32))
    before = tl.sum(tl.where(tl.arange(0, CHUNKS) < chunk, in_chunk, 0))
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    values = _load_logits(logits, row, token, vocab_size)
    inside = tl.cumsum(_integer_weights(values, peak, heat))
    tl.store(tokens + row, chunk * CHUNK + tl.sum((inside <= target - before).to(tl.int32)))


@triton.jit
def _load_logits(logits, row, token, vocab_size):
    place = row.to(tl.int64) * vocab_size + token
    return tl.load(logits + place, mask=token < vocab_size, other=-float("inf")).to(tl.float32)


@triton.jit
def _load_chunks(values, row, chunks, other, CHUNKS: tl.constexpr):
    chunk = tl.arange(0, CHUNKS)
    return tl.load(values + row * chunks + chunk, mask=chunk < chunks, other=other)


@triton.jit
def _integer_weights(values, peak, heat):
    """See ``draw.integer_weights``; ``heat`` is bounded as in ``sampler.HOTTEST``."""
    shifted = (values - peak) / tl.minimum(heat, 1e6)
    return (tl.exp(shifted) * 1099511627776.0).to(tl.int64)


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
