"""Choosing the number of guesses, by how often they hold and by what they cost.

With a share ``a`` of right guesses, the j-th of a row of guesses holds with probability ``a ** j``,
because all before it must hold too (Leviathan et al. 2023, section 3.1). What a guess costs is
measured while the engine runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

HOPE = 0.8
"""Expected share of right guesses before any was made."""
WEIGHT = 0.15
"""Weight of the newest guess in a request's share of right guesses."""
RECOVERY, MIN_RECOVERY = 0.02, 0.001
"""Weight of ``HOPE`` in each step without guesses, so that a request tries again some day: at
first, and after many attempts of which none had a right guess."""
DECAY = 0.98
"""Weight of all earlier steps relative to the newest one, in the cost of a step."""
REFIT = 8
"""Number of steps after which the costs are fitted again."""
FREE_ROWS = 16.0
"""Assumed cost of an empty step, in rows."""
GUESSING_ROWS = 4.0
"""Assumed cost of a pass of a draft model, or of having guesses, in rows."""
HELD_UP = 20
"""Factor of the usual duration, and of the expected one, above which a step was held up."""
BELIEF = (0.1, 8.0, 8.0)
"""Weights of the assumed costs of a step, a row and a pass among those that are measured."""


class Acceptance:
    """The share of guesses that were right, weighted toward the newest.

    Args:
        rate: the share to begin with.
    """

    __slots__ = ("_recovery", "rate")

    def __init__(self, rate: float = HOPE) -> None:
        self.rate = rate
        self._recovery = RECOVERY

    def note(self, num_guesses: int, num_accepted: int) -> None:
        """Update the rate with one step's guesses. Guesses behind a wrong one tell nothing.

        After each failed attempt, the next one is twice as far away, so that trying costs little
        where guesses are never right.
        """
        self._recovery = RECOVERY if num_accepted else max(self._recovery / 2, MIN_RECOVERY)
        for _ in range(num_accepted):
            self.rate += WEIGHT * (1 - self.rate)
        if num_accepted < num_guesses:
            self.rate -= WEIGHT * self.rate

    def recover(self) -> None:
        """Take in a step for which no guess was worth while."""
        self.rate += self._recovery * (HOPE - self.rate)


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of a step, in any unit of time."""

    fixed: float
    """Cost of a step without rows."""
    row: float
    """Cost of each token that is computed."""
    guessing: float = 0.0
    """Cost of each pass of a draft model, which makes one guess for all requests; without one, of
    having guesses in the step at all."""

    def of_step(self, num_rows: int, num_passes: int) -> float:
        """Return the cost of a step."""
        return self.fixed + self.row * num_rows + self.guessing * num_passes


class CostMeter:
    """Measures the costs of steps: a least-squares fit, weighted toward the newest steps.

    Where the steps so far tell nothing, because all were of one size, assumptions take their place.

    Attributes:
        costs: the costs of the steps so far, fitted again every few steps.
        is_fitted: True if ``costs`` are seconds that were measured, and not only assumptions.
    """

    def __init__(self) -> None:
        self._assumed = np.array([FREE_ROWS, 1.0, GUESSING_ROWS])
        self._products = np.zeros((3, 3))
        self._times = np.zeros(3)
        self._noted: list[tuple[float, ...]] = []
        """Steps since the last fit: 1, the numbers of rows and passes, and the seconds."""
        self.is_fitted = False
        self.costs = Costs(*self._assumed.tolist())

    def note(self, num_rows: int, num_passes: int, seconds: float) -> None:
        """Take in a step."""
        self._noted.append((1.0, num_rows, num_passes, seconds))
        if len(self._noted) == REFIT:
            self._take_in(np.array(self._noted))
            self._noted.clear()
            self.costs, self.is_fitted = self._fit(), True

    def is_far_above(self, num_rows: int, num_passes: int, seconds: float) -> bool:
        """Return whether a step took so long that something else must have held it up.

        A kernel that has to be compiled does, for example.
        """
        num_steps = float(self._products[0, 0])
        if not num_steps:
            return False
        mean = float(self._times[0]) / num_steps
        return seconds > HELD_UP * max(mean, self.costs.of_step(num_rows, num_passes))

    def _take_in(self, noted: FloatArray) -> None:
        """Add up the products of some steps, ``[n, 4]``; see ``_noted``."""
        steps, seconds = noted[:, :3], noted[:, 3]
        weights = DECAY ** np.arange(len(noted))[::-1]
        self._products = DECAY ** len(noted) * self._products + steps.T @ (weights[:, None] * steps)
        self._times = DECAY ** len(noted) * self._times + steps.T @ (weights * seconds)

    def _fit(self) -> Costs:
        # The assumed costs, scaled such that they explain the mean time of a step.
        scale = self._times[0] / (self._products[0] @ self._assumed)
        weights = np.diag(BELIEF)
        times = self._times + weights @ (scale * self._assumed)
        fitted = np.linalg.solve(self._products + weights, times)
        return Costs(*fitted.clip(min=0).tolist())


def may_pay(best_rate: float, num_requests: int, costs: Costs) -> bool:
    """Return whether ``choose_counts`` could choose any guess in a step of decoding requests.

    Args:
        best_rate: the highest share of right guesses of all requests.
        num_requests: number of requests.
        costs: what a step costs.
    """
    return best_rate > costs.row * num_requests / max(costs.of_step(num_requests, 0), 1e-12)


def choose_counts(
    rates: Sequence[float],
    most: Sequence[int],
    num_rows: int,
    costs: Costs,
    *,
    in_passes: bool,
) -> list[int]:
    """Return how many guesses to compute for each request, so that tokens come fastest.

    A row of guesses is cut where the next one would yield fewer tokens per time than the step does
    without guesses. The greatest number of guesses is the one that yields the most.

    Args:
        rates: share of right guesses of each request that samples.
        most: maximum number of guesses of each of them.
        num_rows: number of tokens that the step computes anyway.
        costs: what a step costs.
        in_passes: whether each guess takes a pass of a draft model.
    """
    tokens, best_length = float(len(rates)), 0
    best = tokens / max(costs.of_step(num_rows, 0), 1e-12)
    bar = costs.row * best
    chances, counts = [1.0] * len(rates), [0] * len(rates)
    for length in range(1, max(most, default=0) + 1):
        chances = [chance * rate for chance, rate in zip(chances, rates, strict=True)]
        worth = [
            index for index, chance in enumerate(chances) if chance > bar and length <= most[index]
        ]
        if not worth:
            break
        for index in worth:
            counts[index] = length
        num_rows += len(worth)
        tokens += sum(chances[index] for index in worth)
        speed = tokens / max(costs.of_step(num_rows, length if in_passes else 1), 1e-12)
        if speed > best:
            best, best_length = speed, length
    return [min(count, best_length) for count in counts]
