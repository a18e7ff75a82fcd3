"""Log-probabilities of chosen tokens and of the most probable ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from minimal_vllm.device.transfer import Fetch, send
from minimal_vllm.outputs import Logprob, TokenLogprobs
from minimal_vllm.sampling.top import top_of_rows


@dataclass(frozen=True, slots=True)
class QueuedLogprobs:
    """Log-probabilities of ``n`` tokens, on their way to the CPU."""

    ids: Fetch
    """``[n, 1 + k]`` int64: for each row, the chosen token and up to ``k`` others."""
    logprobs: Fetch
    """``[n, 1 + k]`` float32: log-probabilities of these tokens."""
    ranks: Fetch
    """``[n, 1 + k]`` int64: ranks of these tokens."""
    counts: Sequence[int]
    """Number of other tokens of each row, at most ``k``."""

    def wait(self) -> list[TokenLogprobs]:
        """Wait until they have arrived, and return those of each row."""
        rows = zip(
            self.ids.wait(), self.logprobs.wait(), self.ranks.wait(), self.counts, strict=True
        )
        return [
            {
                token: Logprob(logprob, rank)
                for token, logprob, rank in zip(ids[: k + 1], logprobs, ranks, strict=False)
            }
            for ids, logprobs, ranks, k in rows
        ]


def top_logprobs(
    logprobs: Tensor, chosen: Tensor, wanted: Sequence[int | Sequence[int]]
) -> QueuedLogprobs:
    """Find log-probabilities of each row's chosen token, and of its most probable ones.

    As in vLLM, the chosen token comes first, whether or not it is among the others. Its rank is the
    number of tokens that are at least as probable; if it is among the top tokens, its rank there.

    Args:
        logprobs: ``[n, V]`` float32.
        chosen: ``[n]`` int64 token ids; negative where there is none.
        wanted: number of top tokens for each row, -1 for all; or the ids of other tokens.
    """
    num_rows, vocab_size = logprobs.shape
    named = {row: list(each) for row, each in enumerate(wanted) if not isinstance(each, int)}
    num_top = [_num_top(each, vocab_size) for each in wanted]
    chosen = chosen.clamp(min=0)[:, None]
    chosen_logprobs = logprobs.gather(1, chosen)
    top_values, top_ids = top_of_rows(logprobs, max(num_top))
    chosen_ranks = (logprobs >= chosen_logprobs).sum(dim=-1, keepdim=True)
    top_ranks = torch.arange(1, max(num_top) + 1, device=logprobs.device).expand(num_rows, -1)
    found = (
        torch.cat([chosen, top_ids], dim=-1),
        torch.cat([chosen_logprobs, top_values], dim=-1),
        torch.cat([chosen_ranks, top_ranks], dim=-1),
    )
    if named:
        found = _with_named(logprobs, found, named)
    counts = [len(named[row]) if row in named else count for row, count in enumerate(num_top)]
    ids, values, ranks = found
    return QueuedLogprobs(Fetch(ids), Fetch(values), Fetch(ranks), counts)


def _num_top(wanted: int | Sequence[int], vocab_size: int) -> int:
    """Return how many of the most probable tokens a row wants; none if it names others."""
    if not isinstance(wanted, int):
        return 0
    return vocab_size if wanted == -1 else min(wanted, vocab_size)


def _with_named(
    logprobs: Tensor, found: tuple[Tensor, Tensor, Tensor], named: Mapping[int, list[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, log-probabilities and ranks with those of the tokens that some rows name."""
    missing = 1 + max(map(len, named.values())) - found[0].shape[1]
    ids, values, ranks = (pad(each, (0, max(missing, 0))) for each in found)
    for row, token_ids in named.items():
        place = row, slice(1, 1 + len(token_ids))
        index = send(np.array(token_ids, dtype=np.int64), logprobs.device)
        ids[place] = index
        values[place] = logprobs[row, index]
        ranks[place] = (logprobs[row] >= logprobs[row, index, None]).sum(dim=-1)
    return ids, values, ranks
