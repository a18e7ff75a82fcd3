"""Speculation in a simulation: which guesses are right, and what a draft model's passes take."""

from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.trace.step_record import StepRecord
from minimal_vllm_lab.sim.cost_model import CostModel
from minimal_vllm_lab.sim.job import SimulatedRequest, simulated
from minimal_vllm_lab.sim.load import load_of_plan
from minimal_vllm_lab.trace.reader import open_trace

if TYPE_CHECKING:  # it imports numpy, which the playground does without
    from minimal_vllm.speculation.draft_cache import DraftCache


class NoGuesses:
    """Speculation that is off: a step yields one token for each request that samples.

    Args:
        answer: returns the next token of a request.
    """

    def __init__(self, answer: Callable[[SimulatedRequest], int]) -> None:
        self._answer = answer

    def seconds(self, plan: Plan) -> float:
        """Return the time to guess, 0."""
        del plan
        return 0.0

    def sample(self, entry: ScheduledRequest) -> list[int]:
        """Return the next token of the answer."""
        return [self._answer(simulated(entry.request))]


class DrawnGuesses(NoGuesses):
    """Guesses that are right with a given probability, at answers that repeat one token.

    Whether one is right depends on its request and its place in the answer, and on nothing else. So
    two variants of a simulation have the same luck.

    Args:
        rates: probability that a guess is right if those before it are, by its position in the row
            of guesses; the last one also holds for later positions.
        seed: seed of the luck.
    """

    def __init__(self, rates: Sequence[float], seed: int) -> None:
        super().__init__(attrgetter("output_token"))
        self._rates = rates
        self._seed = seed

    def sample(self, entry: ScheduledRequest) -> list[int]:
        """Return tokens of the answer: as many as guesses are right, and one more."""
        request = simulated(entry.request)
        num_right = 0
        while num_right < len(entry.guesses) and self._is_right(
            num_right, request.arrival, request.num_output_tokens + num_right
        ):
            num_right += 1
        return [request.output_token] * (num_right + 1)

    def _is_right(self, position: int, number: int, index: int) -> bool:
        rate = self._rates[min(position, len(self._rates) - 1)]
        return is_lucky(rate, self._seed, number, index)


def is_lucky(chance: float, seed: int, number: int, index: int) -> bool:
    """Return whether the guess at a token of an answer is right.

    Args:
        chance: probability that it is.
        seed: seed of the simulation.
        number: number of the request.
        index: index of the token in the answer.
    """
    digest = blake2b(f"{seed} {number} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < chance * 2**64


class DraftGuesses(DrawnGuesses):
    """Guesses of a draft model, whose passes take time.

    Args:
        rates: see ``DrawnGuesses``.
        seed: see ``DrawnGuesses``.
        cost_model: predicts the duration of a pass.
        cache: says which tokens each pass computes, as in the engine.
    """

    def __init__(
        self, rates: Sequence[float], seed: int, cost_model: CostModel, cache: "DraftCache"
    ) -> None:
        super().__init__(rates, seed)
        self._cost_model = cost_model
        self._cache = cache

    def seconds(self, plan: Plan) -> float:
        """Return the time of all passes that guess for a step."""
        drafts = self._cache.begin(plan)
        of_request = {draft.entry.request: draft for draft in drafts}
        total = 0.0
        for entries in self._cache.passes(drafts):
            total += self._cost_model.seconds(load_of_plan(Plan(entries)))
            for entry in entries:
                if entry.num_logits:
                    of_request[entry.request].guesses.append(0)
        return total


def read_rates(path: Path) -> list[float]:
    """Return how often guesses were right in a trace, given that those before them were.

    Returns:
        A fraction for each position in a row of guesses.

    Raises:
        OSError: the trace can't be read.
        ValueError: it is broken, or no guess of it was decided on.
    """
    right, wrong = Counter[int](), Counter[int]()
    with open_trace(path) as (_, lines):
        for record in lines:
            if isinstance(record, StepRecord):
                for entry in record.scheduled:
                    if entry.num_guesses:
                        num_right = max(len(entry.sampled_tokens) - 1, 0)
                        right.update(range(num_right))
                        # Of a request that has ended, the other guesses tell nothing.
                        wrong[num_right] += bool(entry.num_rejected)
    decided = right + wrong
    if not decided:
        raise ValueError(
            f"{path} has no guesses: record a run with speculative_config, or give acceptance_rate"
        )
    return [right[position] / decided[position] for position in range(max(decided) + 1)]
