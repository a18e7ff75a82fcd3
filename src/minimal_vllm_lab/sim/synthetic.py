"""Synthetic traffic: random lengths, shared prefixes and conversations."""

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from minimal_vllm_lab.sim.config import SyntheticConfig
from minimal_vllm_lab.sim.job import Job

LOG_SIGMA = 1.0
"""Standard deviation of the logarithm of a lognormal length.

The mean is then 1.6 times the median, and one length in 100 is at least 6 times the mean.
"""
VOCAB_SIZE = 10_000
"""Number of different token ids in prompts."""
DRAWN_AT_ONCE = 1024
"""Number of lengths drawn per call to NumPy."""


@dataclass(slots=True)
class _Turn:
    """Next message of a user, and the length of its answer."""

    pause: float
    """Seconds since the previous answer."""
    tokens: "array[int]"
    num_output_tokens: int


class _Conversation:
    """Remaining turns of a conversation.

    All of them are drawn in advance, so the speed of the simulated engine does not change them.
    """

    def __init__(self, turns: Iterable[_Turn]) -> None:
        self._turns = iter(turns)

    def next_job(self, history: "array[int]", now: float) -> Job | None:
        """Return the request for the next turn, or None after the last.

        Args:
            history: all tokens of the conversation until now; the prompt begins with them.
            now: time of the last answer in seconds.
        """
        turn = next(self._turns, None)
        if turn is None:
            return None
        prompt = history + turn.tokens
        return Job(now + turn.pause, prompt, turn.num_output_tokens, self.next_job)


def synthetic_jobs(config: SyntheticConfig, seed: int, arrivals: Iterable[float]) -> Iterator[Job]:
    """Yield the first request of each conversation, drawn when the iterator reaches it.

    Args:
        config: shape of the traffic.
        seed: seed of everything but the arrivals.
        arrivals: start times of conversations in seconds.
    """
    random = np.random.default_rng(seed)
    prefixes = [_tokens(random, config.prefix_len) for _ in range(config.num_prefixes)]
    inputs = _lengths(random, config, config.input_len)
    outputs = _lengths(random, config, config.output_len)
    for arrival in islice(arrivals, config.num_prompts):
        turns = [
            _Turn(
                pause=random.exponential(config.think_time) if index else 0.0,
                tokens=_tokens(random, next(inputs)),
                num_output_tokens=next(outputs),
            )
            for index in range(config.num_turns)
        ]
        prefix = prefixes[random.integers(config.num_prefixes)]
        first = _Conversation(turns).next_job(prefix, arrival)
        if first is not None:
            yield first


def _lengths(random: np.random.Generator, config: SyntheticConfig, mean: int) -> Iterator[int]:
    """Yield endless lengths of at least one token."""
    while True:
        if config.length_distribution == "lognormal":
            drawn = random.lognormal(math.log(mean) - LOG_SIGMA**2 / 2, LOG_SIGMA, DRAWN_AT_ONCE)
        else:
            spread = config.range_ratio * mean
            drawn = random.uniform(mean - spread, mean + spread, DRAWN_AT_ONCE)
        yield from np.maximum(1, np.rint(drawn)).astype(int).tolist()


def _tokens(random: np.random.Generator, count: int) -> "array[int]":
    tokens = array("i")
    tokens.frombytes(random.integers(VOCAB_SIZE, size=count, dtype=np.int32).tobytes())
    return tokens
