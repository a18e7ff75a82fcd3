"""What all kernels of the sampler share: a row of logits, and what a token in it weighs.

Each token of a row has a *gap*, how far it is behind the row's highest logit, and a weight::

    logit    21.5   19.0   20.5   …      peak 21.5, temperature 0.5
    gap       0.0    5.0    2.0          (peak - logit) / temperature
    weight   2⁴⁰     7·10⁹  1·10¹¹       2⁴⁰ · exp(-gap), an integer

The arithmetic is that of ``sampling/sampler.py`` and ``sampling/draw.py``, which names its source;
a gap is minus what they call ``shifted``. Gaps are equal to theirs to the last bit, so what is tied
there is tied here; ``exp`` is the processor's.
"""

import triton
import triton.language as tl


@triton.jit
def load_logits(logits, row, token, vocab_size):  # noqa: ANN201 - Triton's language
    """Of some tokens; -inf for those that do not exist."""
    place = row.to(tl.int64) * vocab_size + token
    return tl.load(logits + place, mask=token < vocab_size, other=-float("inf")).to(tl.float32)


@triton.jit
def load_chunks(values, row, chunks, other, CHUNKS: tl.constexpr):  # noqa: ANN201 - Triton's language
    """What is known of each chunk of a row."""
    chunk = tl.arange(0, CHUNKS)
    return tl.load(values + row * chunks + chunk, mask=chunk < chunks, other=other)


@triton.jit
def is_sound(peaks):  # noqa: ANN201 - Triton's language
    """Whether a row with these peaks of its chunks can be sampled; a peak may be NaN."""
    return (tl.max((peaks != peaks).to(tl.int32)) == 0) & (tl.abs(tl.max(peaks)) < float("inf"))


@triton.jit
def gaps(values, peak, heat):  # noqa: ANN201 - Triton's language
    """Not negative; ``heat``, the temperature, is bounded as in ``sampler.HOTTEST``."""
    # Triton's own division is off by a bit or two, which can tie two tokens, or untie them.
    # And abs, because 0 - 0 is -0 if the peak is, whose bits are not in order.
    return tl.div_rn(tl.abs(peak - values), tl.minimum(heat, 1e6))


@triton.jit
def integer_weights(gap):  # noqa: ANN201 - Triton's language
    """See ``draw.integer_weights``."""
    return (tl.exp(-gap) * 1099511627776.0).to(tl.int64)
