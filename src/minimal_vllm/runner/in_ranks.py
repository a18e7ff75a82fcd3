"""A runner for one of several ranks, in which every failure is fatal."""

from dataclasses import dataclass

from minimal_vllm.model.ranks import Ranks
from minimal_vllm.runner.failures import RankFailedError
from minimal_vllm.runner.interface import Flight, Runner, StepResult
from minimal_vllm.step.plan import Plan


@dataclass(frozen=True, slots=True)
class RankFlight:
    """Step whose failure is fatal; see ``Flight``."""

    flight: Flight
    ranks: Ranks

    def wait(self) -> StepResult:
        """Wait until the step has finished; see ``Flight.wait``.

        Raises:
            RankFailedError: the step failed.
        """
        try:
            result = self.flight.wait()
            self.ranks.raise_if_lost()  # the GPU computes on, with what it has
            return result
        except Exception as error:
            raise _fatal(error) from error


class RankRunner:
    """Runner of one rank's part of each step; see ``Runner``.

    A step that fails in one rank may have succeeded in another, and from then on their schedulers
    would plan different steps. So every failure ends the engine.

    Args:
        runner: computes the steps.
        ranks: this rank and the others.
    """

    def __init__(self, runner: Runner, ranks: Ranks) -> None:
        self._runner = runner
        self._ranks = ranks

    def launch(self, plan: Plan) -> RankFlight:
        """Start a step; see ``Runner.launch``.

        Raises:
            RankFailedError: the step failed.
        """
        try:
            return RankFlight(self._runner.launch(plan), self._ranks)
        except Exception as error:
            raise _fatal(error) from error


def _fatal(error: Exception) -> RankFailedError:
    if isinstance(error, RankFailedError):
        return error
    return RankFailedError(f"a step failed: {type(error).__name__}: {error}")
