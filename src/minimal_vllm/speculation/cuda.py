"""The runner of steps with guesses, on a GPU."""

from dataclasses import dataclass

import numpy as np
import torch

from minimal_vllm.runner.cuda import CudaRunner, QueuedFlight
from minimal_vllm.runner.graphs import Graphs
from minimal_vllm.runner.guesses import GuessSteps
from minimal_vllm.runner.inputs import PENDING
from minimal_vllm.runner.interface import Flight, StepResult
from minimal_vllm.runner.step import GpuStep, Outputs
from minimal_vllm.sampling.row import needs_only_numbers
from minimal_vllm.speculation.cuda_draft import CudaDraftModel, QueuedGuesses
from minimal_vllm.speculation.rows import accept, sampling_rows
from minimal_vllm.step.plan import Plan


@dataclass(frozen=True, slots=True)
class GuessedFlight:
    """Step with guesses that is queued on the GPU; see ``Flight``."""

    plan: Plan
    places: QueuedFlight
    """The flight of all places, each with a token of its own."""
    guesses: QueuedGuesses | None
    """Guesses that the plan doesn't have yet."""

    def wait(self) -> StepResult:
        """Wait for all tokens, and return those that are kept."""
        if self.guesses is not None:
            self.guesses.wait()
        result = self.places.wait()
        return StepResult(accept(self.plan, result.sampled), result.prompt_logprobs)


class SpeculatingCudaRunner(CudaRunner):
    """Runner on a GPU that also computes guesses; see ``SpeculatingRunner``.

    The requests of a step with guesses all decode. Without a draft model, their tokens are known.
    With one, a step may follow another while the GPU still decides how many guesses of that one
    hold: then its positions and tokens are read from the table of rows, where it writes them.

    Args:
        step: the parts of a step. Its table must be empty.
        graphs: CUDA graphs of ``step``. None: every step is launched kernel by kernel.
        guess_steps: steps with guesses.
        draft: model that guesses. None: the plan has the guesses already.
    """

    def __init__(
        self,
        step: GpuStep,
        graphs: Graphs | None,
        guess_steps: GuessSteps,
        draft: CudaDraftModel | None,
    ) -> None:
        super().__init__(step, graphs)
        self._guess_steps = guess_steps
        self._draft = draft

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Flight:
        """Let the draft model guess, if there is one, and queue the step on the GPU."""
        has_guesses = any(entry.guesses for entry in plan.scheduled)
        if self._draft is not None and not has_guesses:
            self._draft.note(plan)
        if not has_guesses and not any(entry.follows_guesses for entry in plan.scheduled):
            return super().launch(plan)
        self._step.table.update(plan)
        if self._graphs:
            self._graphs.forget_order()
        guesses = self._draft.guess(plan) if self._draft is not None and has_guesses else None
        outputs = self._compute(plan)
        owners = [entry.request for entry in plan.scheduled for _ in range(entry.num_logits)]
        special = [i for i, request in enumerate(owners) if not needs_only_numbers(request)]
        if special:
            if guesses is not None:
                guesses.wait()
            rows = sampling_rows(plan)
            self.choose_again(special, [rows[i] for i in special], outputs)
            self._guess_steps.accept_again(len(owners))
        return GuessedFlight(plan, self.fetch(owners, outputs, []), guesses)

    def _compute(self, plan: Plan) -> Outputs:
        """Compute the last token and the guesses of each request."""
        entries = plan.scheduled
        rows = np.array([entry.request.row for entry in entries])
        num_places = np.array([entry.num_logits for entry in entries])
        tokens = [PENDING] * int(num_places.sum())
        if self._draft is None:
            tokens = [token for entry in entries for token in (PENDING, *entry.guesses)]
        return self._guess_steps.compute(rows, np.zeros_like(rows), num_places, tokens)
