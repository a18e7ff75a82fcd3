"""Counts of guesses, and the statistics that ``vllm bench serve`` makes of them."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class GuessCounts:
    """Counts of guesses, and of those that were right."""

    num_drafts: int = 0
    """Number of rows of guesses, one for each request and step that has guesses."""
    num_draft_tokens: int = 0
    """Number of guesses."""
    accepted: Counter[int] = field(default_factory=Counter)
    """Number of right guesses by their position among the guesses of a step, from 0."""

    def note(self, num_guesses: int, num_right: int) -> None:
        """Count the guesses of one request in a step; if it has none, nothing is counted."""
        if num_guesses:
            self.num_drafts += 1
            self.num_draft_tokens += num_guesses
            self.accepted.update(range(num_right))

    def __sub__(self, earlier: "GuessCounts") -> "GuessCounts":
        """Return what was counted since ``earlier``."""
        return GuessCounts(
            self.num_drafts - earlier.num_drafts,
            self.num_draft_tokens - earlier.num_draft_tokens,
            self.accepted - earlier.accepted,
        )

    def __add__(self, other: "GuessCounts") -> "GuessCounts":
        """Return the sum of both counts."""
        return GuessCounts(
            self.num_drafts + other.num_drafts,
            self.num_draft_tokens + other.num_draft_tokens,
            self.accepted + other.accepted,
        )

    def result(self) -> dict[str, Any]:
        """Return vLLM's result fields; none without guesses.

        The acceptance rate is a percentage of all guesses. The acceptance length counts the token
        that follows the right guesses too. The rate of a position is the fraction of the rows of
        guesses that were right up to there.
        """
        if not self.num_draft_tokens:
            return {}
        num_accepted = self.accepted.total()
        num_positions = max(self.accepted, default=-1) + 1
        return {
            "spec_decode_acceptance_rate": 100 * num_accepted / self.num_draft_tokens,
            "spec_decode_acceptance_length": 1 + num_accepted / self.num_drafts,
            "spec_decode_num_drafts": self.num_drafts,
            "spec_decode_draft_tokens": self.num_draft_tokens,
            "spec_decode_accepted_tokens": num_accepted,
            "spec_decode_per_position_acceptance_rates": [
                self.accepted[position] / self.num_drafts for position in range(num_positions)
            ],
        }
