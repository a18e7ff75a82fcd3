"""The table of running requests on the GPU, with a row of numbers for each request.

A steady decode step needs nothing from the CPU: each request's last token was sampled on the GPU,
its position advances by one, and its block table is already there. The CPU sends only its own
decisions: a whole row when a request is admitted, a cell when the request gets another block, and
the position while the request's prompt is being computed::

    row   token  position  prompt length  temperature  seed (2)  filters (4)  block 0   1   2  …
     0     412      87          60            0.7        …          …           7      2   9
     1      13     230         200            0.0        …          …          11      5   4
     2      …
    last    0       -1                              (pads a batch)

A model with several groups of layers has the columns of a block table for each of them. With
speculation, the token before the last one follows, and guesses at the tokens behind it. Then comes
what the last step with guesses sampled, at each of its places, and how many of these tokens, the
first ones, it kept::

    …   before   (unused)   guess 1   2  …   kept   sampled 1   2   3  …
          97                  655   301        2        97    412   88
"""

from array import array
from collections.abc import Iterator
from math import inf, log
from struct import Struct

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.device.transfer import send
from minimal_vllm.step.batch import enumerate_runs
from minimal_vllm.step.plan import Plan, ScheduledRequest

TOKEN, POSITION, PROMPT_LENGTH, TEMPERATURE = 0, 1, 2, 3
SEED, TOP_K, MIN_P, TOP_P, FIRST_BLOCK = 4, 6, 7, 8, 10
"""Columns. A seed takes two columns, and so do the bits of top_p, a float64. Temperature and the
logarithm of min_p are the bits of a float32."""
AFTER_POSITION = Struct("=ifQifd")
"""Layout of the columns from the prompt's length up to the first block."""
NO_GUESS = -1
"""Column, counted from the first guess, for what is not to be noted."""
BEFORE = -2
"""Column, counted from the first guess, of the token before the last one. It is known after a step
with guesses."""
MAX_SEED = 2**64
MAX_TOP_K = 2**31 - 1


class RowTable:
    """Table of running requests on the GPU, updated with the changes of each plan.

    Args:
        num_rows: maximum number of running requests.
        num_blocks: maximum number of blocks of a request, in one group of layers.
        device: the GPU.
        num_groups: number of groups of layers; each has columns for its own block table.
        num_guesses: maximum number of guesses of a request.

    Attributes:
        first_guess: column of the guess at the token behind the last one.
        kept: column of the number of tokens that the last step with guesses kept. The columns of
            the tokens that it sampled follow.
    """

    def __init__(
        self,
        num_rows: int,
        num_blocks: int,
        device: torch.device,
        num_groups: int = 1,
        num_guesses: int = 0,
    ) -> None:
        self.padding_row = num_rows
        self.num_blocks, self.num_groups = num_blocks, num_groups
        self.first_guess = FIRST_BLOCK + num_groups * num_blocks - BEFORE
        self.kept = self.first_guess + num_guesses
        num_sampled = num_guesses + 1 if num_guesses else 0
        self.cells = torch.zeros(
            num_rows + 1, self.kept + 1 + num_sampled, dtype=torch.int32, device=device
        )
        self.cells[self.padding_row, POSITION] = -1
        self._in_prompt: set[int] = set()

    @property
    def block_tables(self) -> list[Tensor]:
        """``[rows, most blocks]`` int32 for each group: the rows' block tables, as views."""
        starts = range(FIRST_BLOCK, self.first_guess + BEFORE, self.num_blocks)
        return [self.cells[:, start : start + self.num_blocks] for start in starts]

    def update(self, plan: Plan) -> None:
        """Send the changes that the plan of the next step makes to the table."""
        firsts, lengths, values = array("q"), array("q"), array("i")
        admitted = {request.row for request in plan.admitted}
        width = self.cells.shape[1]
        for entry in plan.scheduled:
            for column, cells in self._changes(entry, entry.request.row in admitted):
                firsts.append(entry.request.row * width + column)
                lengths.append(len(cells))
                values.extend(cells)
        if firsts:
            change, offset = enumerate_runs(np.frombuffer(lengths, dtype=np.int64))
            index = np.frombuffer(firsts, dtype=np.int64)[change] + offset
            both = np.concatenate((index.view(np.int32), np.frombuffer(values, dtype=np.int32)))
            sent = send(both, self.cells.device)  # one copy, since each takes the CPU some time
            where, what = sent[: 2 * len(index)].view(torch.int64), sent[2 * len(index) :]
            self.cells.view(-1)[where] = what

    def _changes(
        self, entry: ScheduledRequest, is_admitted: bool
    ) -> Iterator[tuple[int, "array[int]"]]:
        """Yield, for each change, the first column and the new numbers from there on."""
        request = entry.request
        if is_admitted:
            yield 0, _fields(entry)
            yield from self._new_entries(request.block_table, 0)
            self._in_prompt.add(request.row)
        elif entry.new_blocks:
            used = len(request.block_table) - len(entry.new_blocks)
            yield from self._new_entries(array("i", entry.new_blocks), used)
        if request.row in self._in_prompt:
            if not is_admitted:
                yield TOKEN, _next_token(entry)
            if entry.num_logits:
                self._in_prompt.discard(request.row)

    def _new_entries(self, blocks: "array[int]", used: int) -> Iterator[tuple[int, "array[int]"]]:
        """Yield the changes for blocks that follow the first ``used`` entries of a block table."""
        for group in range(self.num_groups):
            first = FIRST_BLOCK + group * self.num_blocks + used // self.num_groups
            yield first, blocks[group :: self.num_groups]

    def last_tokens(self, rows: Tensor) -> Tensor:
        """Return the token that each of the rows sampled last, int64; 0 stands for ``NO_TOKEN``."""
        return self.cells[rows, TOKEN].long().clamp_(min=0)

    def note_guesses(self, rows: Tensor, offsets: Tensor, tokens: Tensor) -> None:
        """Write guesses at the tokens that follow a place of each row.

        Args:
            rows: ``[N]``: the rows.
            offsets: ``[N]``: distance of each place from the row's last token. What follows a place
                before it is no guess, and is not noted.
            tokens: ``[N]``: the guesses; 0 stands for ``NO_TOKEN``.
        """
        columns = self.first_guess + offsets.clamp(min=NO_GUESS)
        self.cells[rows, columns] = tokens.int().clamp_(min=0)

    def guesses(self, rows: Tensor) -> Tensor:
        """Return all guesses of some rows, ``[N, num_guesses]`` int32."""
        return self.cells[rows, self.first_guess : self.kept]

    def note_tokens(self, rows: Tensor, tokens: Tensor) -> None:
        """Write the tokens that the rows have sampled."""
        self.cells[rows, TOKEN] = tokens.int()


def _next_token(entry: ScheduledRequest) -> "array[int]":
    """Return the token and the position to write to the row of a request that is in its prompt.

    If the request samples in this step, the position is that of the first token whose logits are
    sampled from; otherwise it is the position of the first token of the next step. The token is
    used only if the step computes a single token of the request.
    """
    position = entry.start + entry.num_new - entry.num_logits
    return array("i", [entry.request.token_ids[entry.start], position])


def _fields(entry: ScheduledRequest) -> "array[int]":
    """Return a row up to its block tables."""
    request, params = entry.request, entry.request.params
    fields = AFTER_POSITION.pack(
        request.num_prompt_tokens,
        0.0 if params.greedy else params.temperature,
        request.seed % MAX_SEED,
        min(params.top_k, MAX_TOP_K),
        log(params.min_p) if params.min_p > 0 else -inf,
        params.top_p,
    )
    return _next_token(entry) + array("i", fields)
