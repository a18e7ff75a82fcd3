"""Log-probabilities of chosen tokens and of the most probable ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minimal_vllm.outputs import Logprob, TokenLogprobs


def top_logprobs(logprobs: Tensor, chosen: Tensor, wanted: Sequence[int]) -> list[TokenLogprobs]:
    """For each row the chosen token, then as many of the most probable ones as are wanted.

    As in vLLM the chosen token comes first, whether or not it is among the others. Its rank is
    the number of tokens that are at least as probable, or its place among the top ones.

    Args:
        logprobs: float32 ``[n, V]``.
        chosen: int64 ``[n]`` token ids; negative where there is none.
        wanted: how many top tokens each row wants; -1 for all.
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
    """The log-probabilities of the tokens that follow some positions of one prompt.

    Positions are independent of each other: a long prompt is best given in slabs, so that only
    a slab's logits need to exist at a time.

    Args:
        logits: ``[n, V]`` of any floating dtype, of ``n`` positions.
        next_token_ids: the ``n`` tokens of the prompt that come after these positions.
        wanted: ``SamplingParams.prompt_logprobs``.
    """
    chosen = torch.tensor(next_token_ids, dtype=torch.int64, device=logits.device)
    return top_logprobs(logits.float().log_softmax(dim=-1), chosen, [wanted] * len(next_token_ids))
