"""What a request forbids, favours and penalises: changes of its logits before any probability.

Each rule changes float32 logits ``[N, V]`` in place, and touches only the rows that ask for it.
Forbidden tokens get -inf. Token ids beyond the vocabulary may be forbidden, allowed or biased:
they cannot be sampled anyway.
"""

from collections.abc import Iterable, Sequence
from math import inf

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.sampling.row import SamplingRow, penalises

BIAS_LIMIT = 100.0
"""OpenAI's bound of ``logit_bias``: enough to force or to forbid a token."""


def keep_allowed_tokens(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Forbids all tokens but the ``allowed_token_ids``."""
    vocab_size = logits.shape[1]
    for i, row in enumerate(rows):
        if row.params.allowed_token_ids is not None:
            forbidden = torch.ones(vocab_size, dtype=torch.bool)
            forbidden[[t for t in row.params.allowed_token_ids if t < vocab_size]] = False
            logits[i].masked_fill_(forbidden.to(logits.device), -inf)


def keep_grammatical_tokens(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Forbids all tokens that would lead the output out of its grammar."""
    masks = {i: row.grammar.allowed_tokens(row) for i, row in enumerate(rows) if row.grammar}
    if masks:
        packed = torch.stack([torch.frombuffer(mask, dtype=torch.uint8) for mask in masks.values()])
        bits = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=logits.device)
        forbidden = (packed.to(logits.device)[:, :, None] & bits == 0).flatten(1)
        index = list(masks)
        logits[index] = logits[index].masked_fill_(forbidden[:, : logits.shape[1]], -inf)


def ban_bad_words(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Forbids the last token of each bad word whose other tokens end the output."""
    _ban(
        logits,
        [
            (i, word[-1])
            for i, row in enumerate(rows)
            for word in row.bad_word_ids
            if _output_ends_with(row, word[:-1])
        ],
    )


def _output_ends_with(row: SamplingRow, tokens: tuple[int, ...]) -> bool:
    start = len(row.token_ids) - len(tokens)
    return start >= row.num_prompt_tokens and tuple(row.token_ids[start:]) == tokens


def ban_stop_tokens(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Forbids the tokens that end the output while it has fewer than ``min_tokens``."""
    _ban(
        logits,
        [
            (i, token)
            for i, row in enumerate(rows)
            if row.params.min_tokens > 0 and row.next_output_index < row.params.min_tokens
            for token in row.stop_token_ids
        ],
    )


def _ban(logits: Tensor, cells: list[tuple[int, int]]) -> None:
    """Forbids pairs of row and token."""
    cells = [(i, token) for i, token in cells if token < logits.shape[1]]
    if cells:
        index = torch.tensor(cells, device=logits.device)
        logits[index[:, 0], index[:, 1]] = -inf


def add_logit_bias(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Adds ``logit_bias``."""
    biases = [
        (i, token, min(max(bias, -BIAS_LIMIT), BIAS_LIMIT))
        for i, row in enumerate(rows)
        if row.params.logit_bias
        for token, bias in row.params.logit_bias.items()
        if token < logits.shape[1]
    ]
    if biases:
        index, tokens, values = zip(*biases, strict=True)
        logits[list(index), list(tokens)] += logits.new_tensor(values)


def apply_penalties(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Makes tokens less probable (with the opposite sign: more) that were seen already.

    Repetition divides the positive and multiplies the negative logits of the tokens of prompt
    and output; presence and frequency are subtracted from those of the output.

    Source: Keskar et al., "CTRL", arXiv:1909.05858, section 4.1 (repetition); OpenAI's API.
    """
    index = [i for i, row in enumerate(rows) if penalises(row.params)]
    if not index:
        return
    histories = [np.array(rows[i].token_ids, np.int64) for i in index]
    lengths = [len(history) for history in histories]
    outputs = [np.arange(len(rows[i].token_ids)) >= rows[i].num_prompt_tokens for i in index]
    params = [rows[i].params for i in index]

    def per_token(values: Iterable[float]) -> Tensor:
        values = np.repeat(np.fromiter(values, np.float32), lengths)
        return torch.from_numpy(values).to(logits.device)

    # A token seen twice is two entries here, which both write the same value.
    place = torch.from_numpy(np.repeat(np.arange(len(index)), lengths)).to(logits.device)
    token = torch.from_numpy(np.concatenate(histories)).to(logits.device)
    is_output = torch.from_numpy(np.concatenate(outputs)).to(logits)
    counts = logits.new_zeros((len(index), logits.shape[1]))
    counts = counts.index_put_((place, token), is_output, accumulate=True)[place, token]

    row = torch.tensor(index, device=logits.device)[place]
    seen = logits[row, token]
    repetition = per_token(p.repetition_penalty for p in params)
    seen = torch.where(seen > 0, seen / repetition, seen * repetition)
    seen -= per_token(p.frequency_penalty for p in params) * counts
    seen -= per_token(p.presence_penalty for p in params) * (counts > 0)
    logits[row, token] = seen
