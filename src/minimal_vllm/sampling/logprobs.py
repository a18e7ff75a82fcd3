"""Log-probabilities of chosen tokens and of the most probable ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from minimal_vllm.device.transfer import Fetch, send
from minimal_vllm.outputs import FlatLogprobs
from minimal_vllm.sampling.top import top_of_rows

NO_ID = -1
"""Fills up the tokens that a row names."""
Wanted = int | Sequence[int]
"""Number of top tokens that a row asks for, -1 for all; or the ids of other tokens."""


@dataclass(frozen=True, slots=True)
class AskedLogprobs:
    """Log-probabilities that rows of logits ask for: of the top tokens, or of named ones."""

    num_rows: int
    """Number ``N`` of all rows."""
    rows: Sequence[int]
    """Indices of the ``n`` rows that ask."""
    max_top: int
    """Maximum number of top tokens of a row."""
    named: Mapping[int, Sequence[int]]
    """Tokens that rows name, by the row's place among those that ask."""
    counts: Sequence[int]
    """Number of tokens that each row gets: the chosen one, and the others."""
    numbers: Tensor
    """``[n, 2 + max_named]`` int32 on the device: row, number of top tokens, and named tokens
    filled up with ``NO_ID``."""

    @classmethod
    def of(
        cls, wanted: Sequence[Wanted | None], vocab_size: int, device: torch.device
    ) -> "AskedLogprobs | None":
        """Return what rows ask for; None if none asks.

        Args:
            wanted: what each row asks for; None: nothing.
            vocab_size: number of logits of each row.
            device: where the logits are.
        """
        rows = [row for row, each in enumerate(wanted) if each is not None]
        if not rows:
            return None
        asked = [wanted[row] for row in rows]
        named = {place: each for place, each in enumerate(asked) if isinstance(each, Sequence)}
        num_top = [_num_top(each, vocab_size) for each in asked]
        counts = [1 + len(named.get(place, ())) + count for place, count in enumerate(num_top)]
        max_named = max(map(len, named.values()), default=0)
        numbers = np.full((len(rows), 2 + max_named), NO_ID, dtype=np.int32)
        numbers[:, 0], numbers[:, 1] = rows, num_top
        for place, token_ids in named.items():
            numbers[place, 2 : 2 + len(token_ids)] = token_ids
        return cls(len(wanted), rows, max(num_top), named, counts, send(numbers, device))

    @property
    def max_named(self) -> int:
        """Return the maximum number of tokens that a row names."""
        return self.numbers.shape[1] - 2

    @property
    def width(self) -> int:
        """Return the maximum number of tokens that a row gets."""
        return 1 + max(self.max_top, self.max_named)


@dataclass(frozen=True, slots=True)
class QueuedLogprobs:
    """Log-probabilities of the tokens of ``N`` rows, on their way to the CPU."""

    found: Fetch
    """``[n, 3, width]``: see ``find_logprobs``."""
    asked: AskedLogprobs

    def wait(self) -> list[FlatLogprobs | None]:
        """Wait until they have arrived, and return one position for each of the ``N`` rows.

        For a row that asks for none, it is None.
        """
        found = self.found.array()
        content, of_column = found.tobytes(), found[0, 0].nbytes
        starts = range(0, len(content), 3 * of_column)
        positions: list[FlatLogprobs | None] = [None] * self.asked.num_rows
        for row, count, start in zip(self.asked.rows, self.asked.counts, starts, strict=True):
            second, third = start + of_column, start + 2 * of_column
            num_bytes = count * found.itemsize
            positions[row] = FlatLogprobs(
                count,
                content[start : start + num_bytes],
                content[second : second + num_bytes],
                content[third : third + num_bytes],
            )
        return positions


def find_logprobs(logits: Tensor, tokens: Tensor, asked: AskedLogprobs) -> Tensor:
    """Find log-probabilities of each row's chosen token, and of the others that it asks for.

    As in vLLM, the chosen token comes first, whether or not it is among the others. A rank is the
    number of tokens that are at least as probable; among the top tokens, the place.

    Args:
        logits: ``[N, V]`` of any floating dtype; computed in float32.
        tokens: ``[N]`` int64: the rows' chosen tokens; negative where there is none.
        asked: what the rows ask for, at least one of them.

    Returns:
        ``[n, 3, width]`` int32: for each row that asks, ids of the tokens, the bits of their
        log-probabilities in float32, and their ranks. Numbers after a row's last are arbitrary.
    """
    if len(asked.rows) < len(logits):
        index = asked.numbers[:, 0]
        logits, tokens = logits[index], tokens[index]
    logits = logits.float()
    peak = logits.amax(dim=-1, keepdim=True)
    log_total = (logits - peak).exp_().sum(dim=-1, keepdim=True).log_()
    chosen = tokens.clamp(min=0)[:, None]
    chosen_logits = logits.gather(1, chosen)
    chosen_ranks = (logits >= chosen_logits).sum(dim=-1, keepdim=True)
    top_logits, top_ids = top_of_rows(logits, asked.max_top)
    places = torch.arange(1, asked.max_top + 1, device=logits.device).expand(len(logits), -1)
    missing = (0, asked.width - 1 - asked.max_top)
    ids = pad(torch.cat([chosen, top_ids], dim=-1), missing)
    values = pad(torch.cat([chosen_logits, top_logits], dim=-1), missing)
    ranks = pad(torch.cat([chosen_ranks, places], dim=-1), missing)
    for place, token_ids in asked.named.items():
        named = asked.numbers[place, 2 : 2 + len(token_ids)].long()
        span = place, slice(1, 1 + len(token_ids))
        ids[span], values[span] = named, logits[place, named]
        ranks[span] = (logits[place] >= logits[place, named, None]).sum(dim=-1)
    logprobs = (values - peak).sub_(log_total)
    return torch.stack([ids.int(), logprobs.view(torch.int32), ranks.int()], dim=1)


def _num_top(wanted: Wanted | None, vocab_size: int) -> int:
    """Return how many of the most probable tokens a row wants; none if it names others."""
    if not isinstance(wanted, int):
        return 0
    return vocab_size if wanted == -1 else min(wanted, vocab_size)
