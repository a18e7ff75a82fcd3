"""The time that guesses may lose while the engine finds out whether they pay.

Finding out has a price. A draft model that begins to guess first computes all tokens that it has
not seen, those of whole prompts among them, and wrong guesses bring nothing in return.
"""

SHARE = 0.02
"""Fraction of all time that may be lost before no more guesses are begun."""
MEMORY = 0.999
"""Weight of all earlier steps relative to the newest one."""


class Allowance:
    """Account of the time that steps with guesses lost, compared with steps without."""

    def __init__(self) -> None:
        self._lost = 0.0
        self._total = 0.0

    @property
    def is_used_up(self) -> bool:
        """True if no guesses should be begun for some time."""
        return self._lost > SHARE * self._total

    def note(self, seconds: float, needed: float) -> None:
        """Take in a step. What guesses have saved is no credit: it pays for no later losses.

        Args:
            seconds: time that the step took.
            needed: time that its tokens would have taken without guesses.
        """
        self._total = MEMORY * self._total + seconds
        self._lost = max(MEMORY * self._lost + seconds - needed, 0.0)
