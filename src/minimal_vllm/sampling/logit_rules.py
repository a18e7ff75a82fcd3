"""Tokens that a request forbids, favors and penalizes: changes of its logits.

Each rule changes float32 logits ``[N, V]`` in place, and touches only the rows that ask for it.
Forbidden tokens get -inf. Token ids beyond the vocabulary may be forbidden, allowed or biased:
they cannot be sampled anyway.
"""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.sampling.row import SamplingRow, penalizes

BIAS_LIMIT = 100.0
"""Maximum absolute ``logit_bias``, OpenAI's: enough to force or to forbid a token."""


def keep_allowed_tokens(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Forbid all tokens but the ``allowed_token_ids``."""
    vocab_size = logits.shape[1]
    for i, row in enumerate(rows):
        if row.params.allowed_token_ids is not None:
            forbidden = torch.ones(vocab_size, dtype=torch.bool)
            forbidden[[t for t in row.params.allowed_token_ids if t < vocab_size]] = False
            logits[i].masked_fill_(forbidden.to(logits.device), -inf)


def keep_grammatical_tokens(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Forbid all tokens with which the output would no longer match its grammar."""
    masks = {i: row.grammar.allowed_tokens(row) for i, row in enumerate(rows) if row.grammar}
    if masks:
        packed = torch.stack([torch.frombuffer(mask, dtype=torch.uint8) for mask in masks.values()])
        bits = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=logits.device)
        forbidden = (packed.to(logits.device)[:, :, None] & bits == 0).flatten(1)
        index = list(masks)
        logits[index] = logits[index].masked_fill_(forbidden[:, : logits.shape[1]], -inf)


def ban_bad_words(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Forbid the last token of each bad word whose other tokens are the end of the output."""
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
    """Forbid stop tokens while the output has fewer than ``min_tokens`` tokens."""
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
    """Forbid pairs of row and token."""
    cells = [(i, token) for i, token in cells if token < logits.shape[1]]
    if cells:
        index = torch.tensor(cells, device=logits.device)
        logits[index[:, 0], index[:, 1]] = -inf


def add_logit_bias(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Add ``logit_bias`` to the logits of its tokens."""
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
    """Make tokens that were seen before less probable; more probable with the opposite sign.

    The repetition penalty divides positive and multiplies negative logits of tokens in the prompt
    or the output. The frequency penalty is subtracted once for each time that a token is in the
    output, the presence penalty once if it is there at all.

    Source: Keskar et al., "CTRL", arXiv:1909.05858, section 4.1 (repetition); OpenAI's API.
    """
    index = [i for i, row in enumerate(rows) if penalizes(row.params)]
    if not index:
        return
    seen = _list_seen_tokens([rows[i] for i in index], logits)
    params = [rows[i].params for i in index]
    repetition = logits.new_tensor([p.repetition_penalty for p in params])[seen.row]
    frequency = logits.new_tensor([p.frequency_penalty for p in params])[seen.row]
    presence = logits.new_tensor([p.presence_penalty for p in params])[seen.row]

    cells = torch.tensor(index, device=logits.device)[seen.row], seen.token
    values = logits[cells]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= frequency * seen.num_outputs
    values -= presence * (seen.num_outputs > 0)
    logits[cells] = values


class _SeenTokens(NamedTuple):
    """The tokens of ``E`` positions in several requests.

    A token at two positions is there twice, with the same number::

        prompt 5 9, output 7 5      row          0 0 0 0
        prompt 4,   output 4 4                           1 1 1
                                    token        5 9 7 5 4 4 4
                                    num_outputs  1 0 1 1 2 2 2
    """

    row: Tensor
    """``[E]`` int64: index of the request."""
    token: Tensor
    """``[E]`` int64"""
    num_outputs: Tensor
    """``[E]`` float32: number of times that the token is in the request's output."""


def _list_seen_tokens(rows: Sequence[SamplingRow], logits: Tensor) -> _SeenTokens:
    """List the tokens of prompts and outputs, on the device of ``logits`` ``[N, V]``."""
    lengths = [len(row.token_ids) for row in rows]
    histories = [np.array(row.token_ids, np.int64) for row in rows]
    is_output = [np.arange(len(row.token_ids)) >= row.num_prompt_tokens for row in rows]
    row = torch.from_numpy(np.repeat(np.arange(len(rows)), lengths)).to(logits.device)
    token = torch.from_numpy(np.concatenate(histories)).to(logits.device)
    counted = torch.from_numpy(np.concatenate(is_output)).to(logits)
    counts = logits.new_zeros((len(rows), logits.shape[1]))
    counts.index_put_((row, token), counted, accumulate=True)
    return _SeenTokens(row, token, counts[row, token])
