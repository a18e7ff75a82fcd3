"""Sampling on the GPU, in a few passes over the logits.

The kernels make the same decisions as ``sampling/sampler.py``, with the same arithmetic (``draw``'s
integer weights, and one random number per row from a counter). The vocabulary is cut into chunks,
so that all SMs have work::

    logits [N, V]     chunk 0 │ chunk 1 │ chunk 2 …
    1. peaks          highest logit of each chunk, and its token; and of each group of 128 tokens
    2. limits         the last token that top_k, top_p and min_p let each row draw: ``filters``
    3. weights        sum of 2**40 * exp((logit - peak) / temperature) of each chunk, within limits
    4. choice         the chunk in which the cumulative sum exceeds u * total, and the token in it

Greedy rows (temperature 0) need only the first pass, and rows without filters skip the second.
Bytes: the logits once or three times, and what ``filters`` reads; with 256 rows and 150,000 tokens
in 16 bits they are 78 MB, more than stays in the cache.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from minimal_vllm.device.launch import launch_options, wait_for_previous
from minimal_vllm.sampling import draw
from minimal_vllm.sampling import row as row_module
from minimal_vllm.sampling.kernels.filters import EVERYTHING, GROUP, find_limits, gap_of, is_kept
from minimal_vllm.sampling.kernels.weights import (
    MAX_TEMPERATURE,
    gaps,
    integer_weights,
    is_sound,
    load_chunks,
    load_logits,
)

NO_TOKEN = tl.constexpr(row_module.NO_TOKEN)
GOLDEN_GAMMA = tl.constexpr(draw.GOLDEN_GAMMA)
MIX_1 = tl.constexpr(draw.MIX_1)
MIX_2 = tl.constexpr(draw.MIX_2)
UNIFORM_STEP = tl.constexpr(draw.UNIFORM_STEP)
LARGEST = tl.constexpr(3e38)
"""Bound of what logits are multiplied with: zero times infinity would not be a number."""
CHUNK = 4096
"""Tokens of the vocabulary per program."""
MAX_REGISTERS = 64
"""Registers of a thread that weights tokens, so that more programs run at once: most of the time
they wait for logits."""


@dataclass(frozen=True, slots=True)
class SamplingInputs:
    """Parameters of the sampler for some rows."""

    temperature: Tensor
    """``[N]`` float32; 0: the most probable token."""
    seeds: Tensor
    """``[N]`` int64."""
    output_index: Tensor
    """``[N]`` int64: index of each row's next token in its output."""
    top_k: Tensor
    """``[N]`` int32; 0 or less: all."""
    top_p: Tensor
    """``[N]`` float64; 1: all."""
    min_p: Tensor
    """``[N]`` float32: the logarithm of min_p; -inf: all."""


def sample_rows(logits: Tensor, inputs: SamplingInputs, tokens: Tensor) -> None:
    """Choose a token for each row; ``NO_TOKEN`` where the highest logit is not finite.

    Args:
        logits: ``[N, V]``, contiguous.
        inputs: the rows' parameters.
        tokens: ``[N]`` int64: the result is written here.
    """
    rows, vocab_size = logits.shape
    options = launch_options(logits)
    chunks = triton.cdiv(vocab_size, CHUNK)
    peaks = inputs.temperature.new_empty(rows, chunks)
    group_peaks = inputs.temperature.new_empty(rows, chunks * (CHUNK // GROUP))
    peak_tokens = inputs.seeds.new_empty(rows, chunks)
    weights = inputs.seeds.new_empty(rows, chunks)
    _peaks_kernel[(rows, chunks)](
        logits, peaks, peak_tokens, group_peaks, vocab_size, chunks,
        CHUNK=CHUNK, GROUP=GROUP, **options,
    )  # fmt: skip
    limits = find_limits(
        logits, peaks, group_peaks, inputs.temperature, inputs.top_k, inputs.top_p, inputs.min_p
    )
    _weights_kernel[(rows, chunks)](
        logits, peaks, inputs.temperature, limits, weights, vocab_size, chunks,
        CHUNK=CHUNK, CHUNKS=triton.next_power_of_2(chunks), maxnreg=MAX_REGISTERS, **options,
    )  # fmt: skip
    _choose_kernel[(rows,)](
        logits, peaks, peak_tokens, weights, limits, inputs.temperature, inputs.seeds,
        inputs.output_index, tokens, vocab_size, chunks,
        CHUNK=CHUNK, CHUNKS=triton.next_power_of_2(chunks), **options,
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
    # A NaN compares unequal to everything: make it the peak.
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
    row_temperature = tl.load(temperature + row)
    if row_temperature == 0.0:
        return
    peak = tl.max(load_chunks(peaks, row, chunks, -float("inf"), CHUNKS))
    limit = tl.load(limits + row)
    if gaps(tl.load(peaks + row * chunks + chunk), peak, row_temperature) > gap_of(limit):
        tl.store(weights + row * chunks + chunk, 0)  # the whole chunk is beyond
        return
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    values = load_logits(logits, row, token, vocab_size)
    if limit == EVERYTHING:
        total = tl.sum(_kept_weights(values, token, peak, row_temperature, limit, False))
    else:
        total = tl.sum(_kept_weights(values, token, peak, row_temperature, limit, True))
    tl.store(weights + row * chunks + chunk, total)


@triton.jit(
    do_not_specialize_on_alignment=["limits", "temperature", "seeds", "output_index", "tokens"]
)
def _choose_kernel(
    logits,
    peaks,
    peak_tokens,
    weights,
    limits,
    temperature,
    seeds,
    output_index,
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
        tl.store(tokens + row, NO_TOKEN)
        return
    row_temperature = tl.load(temperature + row)
    if row_temperature == 0.0:
        first = load_chunks(peak_tokens, row, chunks, vocab_size, CHUNKS)
        tl.store(tokens + row, tl.min(tl.where(all_peaks == peak, first, vocab_size)))
        return
    in_chunk = load_chunks(weights, row, chunks, 0, CHUNKS)
    up_to = tl.cumsum(in_chunk)
    total = tl.sum(in_chunk)
    uniform = _uniform(tl.load(seeds + row), tl.load(output_index + row))
    target = (uniform * total.to(tl.float64)).to(tl.int64)
    chunk = tl.sum((up_to <= target).to(tl.int32))
    before = tl.sum(tl.where(tl.arange(0, CHUNKS) < chunk, in_chunk, 0))
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    values = load_logits(logits, row, token, vocab_size)
    limit = tl.load(limits + row)
    if limit == EVERYTHING:
        inside = tl.cumsum(_kept_weights(values, token, peak, row_temperature, limit, False))
    else:
        inside = tl.cumsum(_kept_weights(values, token, peak, row_temperature, limit, True))
    tl.store(tokens + row, chunk * CHUNK + tl.sum((inside <= target - before).to(tl.int32)))


@triton.jit
def _kept_weights(values, token, peak, temperature, limit, HAS_LIMIT: tl.constexpr):
    """Return the weights of some tokens of a row; 0 for tokens beyond its limit."""
    if HAS_LIMIT:
        gap = gaps(values, peak, temperature)
        return tl.where(is_kept(gap, token, limit), integer_weights(gap), 0)
    else:  # noqa: RET505 - the compiler wants it so
        # No gaps are compared, so a product, off by a bit or two, is good enough. It is faster than
        # to divide each logit.
        per_degree = tl.minimum(1.0 / tl.minimum(temperature, MAX_TEMPERATURE), LARGEST)
        return integer_weights((peak - values) * per_degree)


@triton.jit
def _uniform(seed, output_index):
    """Return a random number in [0, 1), as ``draw.uniforms`` does."""
    count = output_index.to(tl.uint64) + 1
    bits = _mix(_mix(seed.to(tl.uint64)) + count * GOLDEN_GAMMA)
    return (bits >> 11).to(tl.float64) * UNIFORM_STEP


@triton.jit
def _mix(z):
    z = (z ^ (z >> 30)) * MIX_1
    z = (z ^ (z >> 27)) * MIX_2
    return z ^ (z >> 31)
