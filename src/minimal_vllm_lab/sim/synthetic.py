"""Made-up traffic: lengths from a distribution, shared prefixes, conversations."""

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from minimal_vllm_lab.sim.config import SyntheticConfig
from minimal_vllm_lab.sim.job import Job

LOG_SIGMA = 1.0
"""Of a length's logarithm: the mean is 1.6 times the median, and one in 100 is 6 times the mean."""
VOCAB_SIZE = 10_000
DRAWN_AT_ONCE = 1024


@dataclass(slots=True)
class _Turn:
    """What a user says next, and how long the answer will be."""

    pause: float
    """Seconds since the last answer."""
    tokens: "array[int]"
    num_output_tokens: int


class _Conversation:
    """Turns yet to come; all are drawn in advance, so that no engine's speed changes them."""

    def __init__(self, turns: Iterable[_Turn]) -> None:
        self._turns = iter(turns)

    def next_job(self, said: "array[int]", now: float) -> Job | None:
        """The next turn, behind all that was said until ``now``; None: it was the last."""
        turn = next(self._turns, None)
        if turn is None:
            return None
        prompt = said + turn.tokens
        return Job(now + turn.pause, prompt, turn.num_output_tokens, self.next_job)


def synthetic_jobs(config: SyntheticConfig, seed: int, arrivals: Iterable[float]) -> Iterator[Job]:
    """The first request of each conversation, drawn when it is asked for.

    Args:
        config: what the traffic looks like.
        seed: determines everything but the arrivals.
        arrivals: when conversations begin.
    """
    random = np.random.default_rng(seed)
    prefixes = [_tokens(random, config.prefix_len) for _ in range(config.num_prefixes)]
    inputs = _lengths(random, config, config.input_len)
    outputs = _lengths(random, config, config.output_len)
    for arrival in islice(arrivals, config.num_prompts):
        turns = [
            _Turn(
                pause=random.exponential(config.think_time) if number else 0.0,
                tokens=_tokens(random, next(inputs)),
                num_output_tokens=next(outputs),
            )
            for number in range(config.num_turns)
        ]
        prefix = prefixes[random.integers(config.num_prefixes)]
        first = _Conversation(turns).next_job(prefix, arrival)
        if first is not None:
            yield first


def _lengths(random: np.random.Generator, config: SyntheticConfig, mean: int) -> Iterator[int]:
    """Endless lengths of at least one token."""
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
