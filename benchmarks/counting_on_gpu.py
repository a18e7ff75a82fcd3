"""A guesser on a GPU that knows a model that counts, for measuring steps launched ahead."""

from typing import Any

import numpy as np
import torch

from minimal_vllm.device.transfer import Fetch, send
from minimal_vllm.llm import LLM
from minimal_vllm.runner.table import RowTable
from minimal_vllm.speculation.cuda_draft import QueuedGuesses
from minimal_vllm.speculation.draft_cache import Draft
from minimal_vllm.speculation.interface import Places
from minimal_vllm.step.plan import Plan


class CountingOnGpu:
    """Guesses the following numbers, all right, where the last one is: on the GPU.

    It takes the place of a ``CudaDraftModel``, and costs nothing.

    Args:
        table: the table of rows.
    """

    def __init__(self, table: RowTable) -> None:
        self._table = table

    def note(self, plan: Plan) -> None:
        """Do nothing: nothing is remembered."""

    def guess(self, plan: Plan) -> QueuedGuesses:
        """Queue guesses, as ``CudaDraftModel`` does."""
        guessing = [Draft(each, len(each.guesses)) for each in plan.scheduled if each.guesses]
        device, most = self._table.cells.device, max(draft.count for draft in guessing)
        rows = send(np.array([draft.entry.request.row for draft in guessing]), device)
        offsets = torch.arange(most, device=device).repeat(len(rows))
        tokens = self._table.last_tokens(rows).repeat_interleave(most) + 1 + offsets
        self._table.note_guesses(rows.repeat_interleave(most), offsets, tokens)
        return QueuedGuesses(guessing, Fetch(self._table.guesses(rows)))


def let_count_on_gpu(llm: LLM) -> None:
    """Let the guesses of an engine that counts be made on the GPU, and so be launched ahead."""
    runner: Any = llm.engine._runner
    scheduler: Any = llm.engine.scheduler
    runner._draft = CountingOnGpu(runner._step.table)
    scheduler.guesser, scheduler._may_follow = Places(), True
