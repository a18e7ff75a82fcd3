"""The sampler: from logits to the next token of each request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from minimal_vllm.device.transfer import Fetch
from minimal_vllm.outputs import FlatLogprobs
from minimal_vllm.sampling.draw import draw, uniforms
from minimal_vllm.sampling.filters import keep_min_p, keep_top_k, keep_top_p
from minimal_vllm.sampling.logit_rules import (
    add_logit_bias,
    apply_penalties,
    ban_bad_words,
    ban_stop_tokens,
    keep_allowed_tokens,
    keep_grammatical_tokens,
)
from minimal_vllm.sampling.logprobs import AskedLogprobs, QueuedLogprobs, find_logprobs
from minimal_vllm.sampling.row import NO_TOKEN, SamplingRow

MAX_TEMPERATURE = 1e6
"""Maximum effective temperature. At this one, all allowed tokens are already equally probable, and
float32 would overflow at far higher ones."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Tokens that a step sampled: one list for each request that samples.

    A list is empty if nothing could be sampled, because a logit is NaN or +inf or because every
    token is forbidden. This doesn't affect the other lists.

    Raises:
        ValueError: ``logprobs`` and ``tokens`` differ in length.
    """

    tokens: Sequence[Sequence[int]]
    """Token ids to append to each request, in order."""
    logprobs: Sequence[FlatLogprobs | None]
    """Log-probabilities for each of these tokens; None for a request without
    ``SamplingParams.logprobs``, or without tokens."""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.logprobs):
            raise ValueError(
                f"Sampled needs one entry of logprobs per request: it has {len(self.logprobs)} for "
                f"{len(self.tokens)} requests; give None to a request that asks for none"
            )

    @classmethod
    def one_each(
        cls, token_ids: Sequence[int], logprobs: Sequence[FlatLogprobs | None] | None = None
    ) -> "Sampled":
        """Build the result of a step that samples one token per request.

        Args:
            token_ids: one per request; ``NO_TOKEN`` becomes an empty list.
            logprobs: one position per request; None where no log-probabilities are asked for.
        """
        known = logprobs or [None] * len(token_ids)
        # Python keeps small tuples for reuse. As many lists, in each step, would make its collector
        # run several times as often.
        return cls(
            [(token_id,) if token_id != NO_TOKEN else () for token_id in token_ids],
            [None if token_ids[i] == NO_TOKEN else entry for i, entry in enumerate(known)],
        )


class Sampler(Protocol):
    """A function that chooses tokens; ``sample`` is one."""

    def __call__(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Sampled:
        """Choose one token per row; see ``sample``."""
        ...


@torch.inference_mode()
def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> Sampled:
    """Sample one token per row, and find the log-probabilities that rows ask for.

    Args:
        logits: ``[N, V]`` of any floating dtype; computed in float32. May be overwritten.
        rows: the ``N`` requests that the logits belong to.

    Returns:
        A list with one token for each row, or with none if nothing can be sampled from it.
    """
    logits = logits.float()
    wanted = [row.params.asked_logprobs for row in rows]
    asked = AskedLogprobs.of(wanted, logits.shape[1], logits.device)
    raw = logits.clone() if asked else logits
    chosen = choose(logits, rows)
    logprobs = None
    if asked:
        logprobs = QueuedLogprobs(Fetch(find_logprobs(raw, chosen, asked)), asked).wait()
    return Sampled.one_each(chosen.tolist(), logprobs)


def choose(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Choose one token per row, in the stages of vLLM's sampler and in their order.

    A row's token is a function of its own logits, parameters, seed and tokens. Other rows of the
    batch, and the row's index among them, don't matter.

    Args:
        logits: ``[N, V]`` float32; overwritten.
        rows: the ``N`` requests that the logits belong to.

    Returns:
        ``[N]`` int64; ``NO_TOKEN`` where nothing can be sampled.
    """
    apply_rules(logits, rows)
    peak = logits.amax(dim=-1)
    chosen = _choose(logits, peak, rows)
    # amax passes NaN on, so a row with a finite peak is sound.
    return torch.where(peak.isfinite(), chosen, NO_TOKEN)


def apply_rules(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Forbid, favor and penalize tokens, as each row asks for. Overwrites the logits."""
    keep_grammatical_tokens(logits, rows)
    keep_allowed_tokens(logits, rows)
    ban_bad_words(logits, rows)
    ban_stop_tokens(logits, rows)
    add_logit_bias(logits, rows)
    apply_penalties(logits, rows)


def _choose(logits: Tensor, peak: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Return each row's token, int64 ``[N]``: the most probable one, or a random one."""
    random = [i for i, row in enumerate(rows) if not row.params.greedy]
    if not random:
        return most_probable(logits)
    if len(random) == len(rows):
        return _choose_randomly(logits, peak, rows)
    chosen = most_probable(logits)
    chosen[random] = _choose_randomly(logits[random], peak[random], [rows[i] for i in random])
    return chosen


def most_probable(logits: Tensor) -> Tensor:
    """Return the first of each row's largest logits, or the first NaN, int64 ``[N]``.

    On a CPU, PyTorch compares one number at a time, and NumPy many.
    """
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def _choose_randomly(logits: Tensor, peak: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Draw a token for each row, none of which is greedy; int64 ``[N]``."""
    return draw(filter_logits(logits, peak, rows), uniforms(rows))


def filter_logits(logits: Tensor, peak: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Return logits by the temperature, -inf for tokens that ``min_p`` and others rule out.

    Logits are shifted so that the most probable token's is 0. A tiny temperature then can't make
    them overflow, and ``exp(logit)`` is a probability relative to the highest.
    """
    temperature = logits.new_tensor([min(row.params.temperature, MAX_TEMPERATURE) for row in rows])
    shifted = (logits - peak[:, None]).div_(temperature[:, None])
    keep_min_p(shifted, rows)
    keep_top_k(shifted, rows)
    keep_top_p(shifted, rows)
    return shifted
