"""The time that guesses may lose while the engine finds out whether they pay.

Finding out has a price. A draft model that begins to guess first computes all tokens that it has
not seen, those of whole prompts among them, and wrong guesses bring nothing in return.
"""

SHARE = 0.015
"""Fraction of all time that may be lost before no more guesses are begun."""
HEAD_SHARE = 0.01
"""Fraction that may be lost with an EAGLE-3 head. Writing what the head reads takes another 0.01 of
the time, in steps with guesses and without, so that no comparison of steps shows it."""
MEMORY = 0.999
"""Weight of all earlier steps relative to the newest one."""


class Allowance:
    """Account of the time that steps lost by guesses, compared with steps without.

    Args:
        share: fraction of all time that may be lost.
    """

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._lost = 0.0
        self._total = 0.0

    @property
    def is_used_up(self) -> bool:
        """True if no guesses should be begun for some time."""
        return self._lost > self._share * self._total

    def note(self, seconds: float, needed: float) -> None:
        """Take in a step. What guesses have saved is no credit: it pays for no later losses.

        Args:
            seconds: time that the step took.
            needed: time that its tokens would have taken without guesses.
        """
        self._total = MEMORY * self._total + seconds
        self._lost = max(MEMORY * self._lost + seconds - needed, 0.0)
