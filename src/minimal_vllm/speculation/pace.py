"""Choosing the number of guesses, by how often they hold and by the load."""

from dataclasses import dataclass
from math import floor, log

HOPE = 0.8
"""Expected share of right guesses of a request that has had none."""
WEIGHT = 0.15
"""Weight of the newest guess in a request's share of right guesses."""
RECOVERY = 0.02
"""Weight of ``HOPE`` in each step without guesses, so that a request tries again some day."""
DECAY = 0.98
"""Weight of all earlier steps relative to the newest one, in the cost of a step."""
FREE_ROWS = 16.0
"""Cost of an empty step in rows, as long as nothing is measured."""
BELIEF = 8.0
"""Number of steps that the assumption ``FREE_ROWS`` weighs as much as."""


class Acceptance:
    """The share of a request's guesses that were right, weighted toward the newest."""

    __slots__ = ("rate",)

    def __init__(self) -> None:
        self.rate = HOPE

    def note(self, num_guesses: int, num_accepted: int) -> None:
        """Take in one step's guesses. Guesses behind a wrong one tell nothing."""
        for _ in range(num_accepted):
            self.rate += WEIGHT * (1 - self.rate)
        if num_accepted < num_guesses:
            self.rate -= WEIGHT * self.rate

    def recover(self) -> None:
        """Take in a step for which no guess was worth while."""
        self.rate += RECOVERY * (HOPE - self.rate)

    def count_above(self, bar: float, most: int) -> int:
        """Return how many guesses in a row hold with a probability of at least ``bar``."""
        if self.rate <= bar:
            return 0
        if self.rate >= 1 or bar <= 0:
            return most
        return min(most, floor(log(bar) / log(self.rate)))


@dataclass(slots=True)
class StepCost:
    """The time of a step as a line, ``fixed + rows * slope``, fitted to the steps so far.

    Each row is a token that is computed. An exponentially weighted least-squares fit.
    """

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    rows_squared: float = 0.0
    rows_times_seconds: float = 0.0

    def note(self, num_rows: int, seconds: float) -> None:
        """Take in a step."""
        self.weight = DECAY * self.weight + 1
        self.rows = DECAY * self.rows + num_rows
        self.seconds = DECAY * self.seconds + seconds
        self.rows_squared = DECAY * self.rows_squared + num_rows**2
        self.rows_times_seconds = DECAY * self.rows_times_seconds + num_rows * seconds

    @property
    def free_rows(self) -> float:
        """The cost of an empty step in rows: the number of rows that cost as much again."""
        if not self.weight:
            return FREE_ROWS
        mean_rows, mean_seconds = self.rows / self.weight, self.seconds / self.weight
        variance = self.rows_squared / self.weight - mean_rows**2
        covariance = self.rows_times_seconds / self.weight - mean_rows * mean_seconds
        # Without steps of different sizes the slope is the assumed one.
        assumed = mean_seconds / (mean_rows + FREE_ROWS)
        doubt = BELIEF / self.weight
        slope = (covariance + doubt * assumed) / (variance + doubt)
        if slope <= 0:
            return 1e9  # rows cost nothing that could be measured
        return max(mean_seconds / slope - mean_rows, 0.0)

    def bar(self, num_rows: int) -> float:
        """Return the probability from which on a guess pays in a step of ``num_rows`` rows.

        With a fixed cost of F rows, a step of N rows that each yield a token costs (F + N) / N per
        token. One more row, which yields a token with probability p, lowers this if
        ``(F + N + 1) / (N + p) < (F + N) / N``, so if ``p > N / (F + N)``.
        """
        return num_rows / (self.free_rows + num_rows)
