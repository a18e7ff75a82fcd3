"""The shapes of the steps that are recorded as CUDA graphs.

A graph replays launches with the grids that they were recorded with. Therefore a number of shapes
is recorded, and a step is padded to the next larger one.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

SECONDS_TO_LAUNCH = 0.015
"""Time that the CPU takes to launch the kernels of a step one by one."""
FLOPS_PER_SM = 600e12 / 132
"""Operations per second of one streaming multiprocessor in large products (measured on an H200)."""
MAX_RECORDED_TOKENS = 4096
"""Maximum number of tokens in a recorded step. Above it, cuDNN's attention is faster than ours, and
graphs would take more memory."""
ALWAYS_RECORDED_TOKENS = 512
"""Number of tokens up to which steps are recorded for every model."""
MAX_ADMITTED = 60
"""Maximum number of requests that a step of a small model admits. With 64 new tokens each, they fit
into a recorded step, beside others that decode."""
MAX_PROMPTS = 64
"""Maximum number of prompts in a recorded step: each may leave its last tile of tokens almost
empty."""
FEW_DECODES = 32
"""Number of decoding requests up to which a step with prompts uses a smaller grid, with fewer idle
programs."""

MAX_PLACES = 256
"""Maximum number of tokens in a step with guesses. With as many, the tensor cores take as long as
reading the weights does, so that nothing is left for guesses to use."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """Sizes that determine every kernel's grid in a step, up to the hidden states."""

    num_tokens: int
    num_decodes: int
    is_steady: bool = False
    """Whether all requests decode. Such a step reads all inputs from the table of rows, and its
    graph also samples."""
    shares: bool = False
    """Whether a steady step reads shared prefixes once. Other steps always check for them."""


def batch_sizes(most: int) -> Iterator[int]:
    """Yield the numbers of requests to record, ascending: dense where a step's time depends on it.

    Args:
        most: maximum number of requests in a step.
    """
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, most, 16)]
    yield from (size for size in sizes if size < most)
    yield most


def token_counts(most: int) -> Iterator[int]:
    """Yield the token counts to record, ascending.

    Args:
        most: maximum number of tokens in a recorded step.
    """
    powers = (256, 512, 1024, 2048)
    dense = [power * quarters // 4 for power in powers for quarters in (5, 6, 7, 8)]
    yield from (size for size in [16, 32, 64, 128, 192, 256, *dense] if size < most)
    yield most


def max_places(max_num_seqs: int, max_guesses: int) -> int:
    """Return the maximum number of tokens in a step with guesses.

    Args:
        max_num_seqs: maximum number of requests in a step.
        max_guesses: maximum number of guesses of a request.
    """
    return min(MAX_PLACES, max_num_seqs * (1 + max_guesses))


def place_counts(most: int) -> Iterator[int]:
    """Yield the numbers of places to record for steps with guesses, ascending.

    Args:
        most: maximum number of places in a step.
    """
    sizes = [1, 2, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192]
    yield from (size for size in sizes if size < most)
    yield most


def extremes_first(sizes: Sequence[T]) -> list[T]:
    """Return the ascending ``sizes`` from both ends: the largest, the smallest, and so on."""
    pairs = zip(reversed(sizes), sizes, strict=True)
    return [each for pair in pairs for each in pair][: len(sizes)]


def next_size(sizes: Sequence[int], least: int) -> int:
    """Return the smallest of the ascending ``sizes`` that is at least ``least``."""
    return sizes[bisect_left(sizes, least)]


def max_recorded_tokens(num_parameters: int, most: int, num_sms: int) -> int:
    """Return the number of tokens up to which a step is worth recording.

    With more tokens the GPU computes longer than the CPU takes to launch the kernels.

    Args:
        num_parameters: parameters that a token is computed with; each takes two operations.
        most: maximum number of tokens in a step.
        num_sms: number of streaming multiprocessors of the GPU.
    """
    operations = SECONDS_TO_LAUNCH * FLOPS_PER_SM * num_sms
    worth = round(operations / (2 * num_parameters))
    return min(max(worth, ALWAYS_RECORDED_TOKENS), MAX_RECORDED_TOKENS, most)


def max_admitted(num_parameters: int, most: int, num_sms: int) -> int | None:
    """Return the number of requests that a step admits at most; None: any number.

    To plan many short prompts takes the CPU about as long as a small model takes to compute them.
    In several steps, it plans some while the GPU computes others; and these steps are recorded.

    Args:
        num_parameters: as in ``max_recorded_tokens``.
        most: as in ``max_recorded_tokens``.
        num_sms: as in ``max_recorded_tokens``.
    """
    is_small = max_recorded_tokens(num_parameters, most, num_sms) == MAX_RECORDED_TOKENS
    return MAX_ADMITTED if is_small else None
