"""Log-probabilities of chosen tokens and of the most probable ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minimal_vllm.outputs import Logprob, TokenLogprobs


def top_logprobs(logprobs: Tensor, chosen: Tensor, wanted: Sequence[int]) -> list[TokenLogprobs]:
    """Return log-probabilities of each row's chosen token, and of its most probable ones.

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
    ranks = (logprobs >= chosen_logprobs).sum(dim=-1).tolist()
    top = logprobs.topk(max(wanted))
    ids = torch.cat([chosen, top.indices], dim=-1).tolist()
    values = torch.cat([chosen_logprobs, top.values], dim=-1).tolist()
    return [
        {
            token: Logprob(logprob, rank)
            for token, logprob, rank in zip(
                ids[i][: k + 1], values[i], (ranks[i], *range(1, k + 1)), strict=False
            )
        }
        for i, k in enumerate(wanted)
    ]


@torch.inference_mode()
def prompt_logprobs(
    logits: Tensor, next_token_ids: Sequence[int], wanted: int
) -> list[TokenLogprobs]:
    """Return the log-probabilities of the tokens that follow some positions of one prompt.

    Positions are independent of each other. Pass a long prompt in several parts, so that only one
    part's logits exist at a time.

    Args:
        logits: ``[n, V]`` of any floating dtype: logits of ``n`` positions.
        next_token_ids: the ``n`` tokens of the prompt that follow these positions.
        wanted: number of top tokens, as in ``SamplingParams.prompt_logprobs``.
    """
    chosen = torch.tensor(next_token_ids, dtype=torch.int64, device=logits.device)
    return top_logprobs(logits.float().log_softmax(dim=-1), chosen, [wanted] * len(next_token_ids))
