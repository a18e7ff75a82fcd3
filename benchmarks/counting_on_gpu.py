"""A guesser on a GPU that knows a model that counts, for measuring steps launched ahead."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.counting import MAX_GUESSES
from minimal_vllm.device.transfer import Fetch, send
from minimal_vllm.llm import LLM
from minimal_vllm.runner.table import TOKEN, RowTable
from minimal_vllm.speculation.cuda_draft import QueuedGuesses
from minimal_vllm.speculation.draft_cache import Draft
from minimal_vllm.speculation.interface import Placeholders
from minimal_vllm.step.plan import Plan


class CountingOnGpu:
    """Guesses the following numbers, all right, where the last one is: on the GPU.

    It takes the place of a ``CudaDraftModel``, and costs next to nothing.

    Args:
        table: the table of rows.
    """

    def __init__(self, table: RowTable) -> None:
        self._table = table
        device = table.cells.device
        self._distances = torch.arange(1, MAX_GUESSES + 1, dtype=torch.int32, device=device)
        self._sent: tuple[list[int], Tensor] = ([], torch.empty(0))
        """Rows that guess, and the same on the GPU."""

    def note(self, plan: Plan) -> None:
        """Do nothing: nothing is remembered."""

    def guess(self, plan: Plan) -> QueuedGuesses:
        """Queue guesses, as ``CudaDraftModel`` does."""
        guessing = [Draft(each, len(each.guesses)) for each in plan.scheduled if each.guesses]
        cells, first = self._table.cells, self._table.first_guess
        most = max(draft.count for draft in guessing)
        # Few copies and launches, since their time would be taken for that of the step.
        rows = self._rows([draft.entry.request.row for draft in guessing])
        guesses = cells[rows, TOKEN][:, None] + self._distances[:most]
        cells[rows, first : first + most] = guesses
        return QueuedGuesses(guessing, Fetch(guesses))

    def _rows(self, rows: list[int]) -> Tensor:
        """Return rows on the GPU: often those of the step before."""
        if rows != self._sent[0]:
            self._sent = rows, send(np.array(rows), self._table.cells.device)
        return self._sent[1]


def let_count_on_gpu(llm: LLM) -> None:
    """Let the guesses of an engine that counts be made on the GPU, and so be launched ahead."""
    runner: Any = llm.engine._runner
    scheduler: Any = llm.engine.scheduler
    runner._draft = CountingOnGpu(runner._step.table)
    scheduler.guesser, scheduler._may_follow = Placeholders(), True
