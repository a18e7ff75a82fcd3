"""Log-probabilities of chosen tokens and of the most probable ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minimal_vllm.device.transfer import Fetch
from minimal_vllm.outputs import Logprob, TokenLogprobs


@dataclass(frozen=True, slots=True)
class QueuedLogprobs:
    """Log-probabilities of ``n`` tokens, on their way to the CPU."""

    ids: Fetch
    """``[n, 1 + k]`` int64: for each row, the chosen token and the ``k`` most probable ones."""
    logprobs: Fetch
    """``[n, 1 + k]`` float32: log-probabilities of these tokens."""
    ranks: Fetch
    """``[n]`` int64: ranks of the chosen tokens."""
    wanted: Sequence[int]
    """Number of top tokens of each row."""

    def wait(self) -> list[TokenLogprobs]:
        """Wait until they have arrived, and return those of each row."""
        rows = zip(
            self.ids.wait(), self.logprobs.wait(), self.ranks.wait(), self.wanted, strict=True
        )
        return [
            {
                token: Logprob(logprob, rank)
                for token, logprob, rank in zip(
                    ids[: k + 1], logprobs, (chosen_rank, *range(1, k + 1)), strict=False
                )
            }
            for ids, logprobs, chosen_rank, k in rows
        ]


def top_logprobs(logprobs: Tensor, chosen: Tensor, wanted: Sequence[int]) -> QueuedLogprobs:
    """Find log-probabilities of each row's chosen token, and of its most probable ones.

    As in vLLM, the chosen token comes first, whether or not it is among the others. Its rank is the
    number of tokens that are at least as probable; if it is among the top tokens, its rank there.

    Args:
        logprobs: ``[n, V]`` float32.
        chosen: ``[n]`` int64 token ids; negative where there is none.
        wanted: number of top tokens for each row; -1: all.
    """
    vocab_size = logprobs.shape[1]
    wanted = [vocab_size if k == -1 else min(k, vocab_size) for k in wanted]
    chosen = chosen.clamp(min=0)[:, None]
    chosen_logprobs = logprobs.gather(1, chosen)
    top = logprobs.topk(max(wanted))
    return QueuedLogprobs(
        ids=Fetch(torch.cat([chosen, top.indices], dim=-1)),
        logprobs=Fetch(torch.cat([chosen_logprobs, top.values], dim=-1)),
        ranks=Fetch((logprobs >= chosen_logprobs).sum(dim=-1)),
        wanted=wanted,
    )
