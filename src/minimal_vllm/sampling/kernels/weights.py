"""Functions that the sampler's kernels share: reading a row of logits, and weighting its tokens.

Each token of a row has a *gap*, its distance from the row's highest logit, and a weight::

    logit    21.5   19.0   20.5   …      peak 21.5, temperature 0.5
    gap       0.0    5.0    2.0          (peak - logit) / temperature
    weight   2⁴⁰     7·10⁹  1·10¹¹       2⁴⁰ · exp(-gap), an integer

The arithmetic is that of ``sampling/sampler.py`` and ``sampling/draw.py``, which names its source;
a gap is the negative of their ``shifted``. Gaps are bitwise equal, so the same tokens are tied;
``exp`` is the GPU's.
"""

import triton
import triton.language as tl

from minimal_vllm.sampling import draw, sampler

MAX_TEMPERATURE = tl.constexpr(sampler.MAX_TEMPERATURE)
PEAK_WEIGHT = tl.constexpr(draw.PEAK_WEIGHT)


@triton.jit
def load_logits(logits, row, token, vocab_size):  # noqa: ANN201 - Triton's language
    """Return some tokens' logits in float32; -inf for tokens that do not exist."""
    offsets = row.to(tl.int64) * vocab_size + token
    return tl.load(logits + offsets, mask=token < vocab_size, other=-float("inf")).to(tl.float32)


@triton.jit
def load_chunks(values, row, chunks, other, CHUNKS: tl.constexpr):  # noqa: ANN201 - Triton's language
    """Return a row's values of all chunks; ``other`` past the last chunk."""
    chunk = tl.arange(0, CHUNKS)
    return tl.load(values + row * chunks + chunk, mask=chunk < chunks, other=other)


@triton.jit
def is_sound(peaks):  # noqa: ANN201 - Triton's language
    """Return whether a row whose chunks have these peaks can be sampled; a peak may be NaN."""
    return (tl.max((peaks != peaks).to(tl.int32)) == 0) & (tl.abs(tl.max(peaks)) < float("inf"))


@triton.jit
def gaps(values, peak, temperature):  # noqa: ANN201 - Triton's language
    """Return the tokens' gaps; they are not negative."""
    # Triton's own division is off by a bit or two, which can make or break a tie of two tokens.
    # And abs, because 0 - 0 is -0 if the peak is -0, whose bits are not in order.
    return tl.div_rn(tl.abs(peak - values), tl.minimum(temperature, MAX_TEMPERATURE))


@triton.jit
def integer_weights(gap):  # noqa: ANN201 - Triton's language
    """Return the integer weights of tokens with these gaps, as ``draw.integer_weights`` does."""
    return (tl.exp(-gap) * PEAK_WEIGHT).to(tl.int64)
