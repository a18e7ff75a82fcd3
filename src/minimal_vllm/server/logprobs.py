"""Log-probabilities in the shapes of the two endpoints."""

import codecs
from collections.abc import Iterable, Sequence

from minimal_vllm.outputs import Logprob, TokenLogprobs
from minimal_vllm.server.responses import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
)
from minimal_vllm.text.tokenizer import Tokenizer

LOWEST = -9999.0
"""Stands for minus infinity, which JSON can't write."""


class TokenNames:
    """How tokens are written: as text, or, where that might be ambiguous, by their id."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool) -> None:
        self.tokenizer = tokenizer
        self._as_ids = as_ids

    def __getitem__(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else self.tokenizer.token_text(token_id)


class CompletionLogprobsWriter:
    """Writes the log-probabilities of one choice of ``/v1/completions``, part by part.

    Args:
        names: of the tokens.
        num_top: how many of the most probable tokens are wanted; -1: all.
    """

    def __init__(self, names: TokenNames, num_top: int) -> None:
        self._names = names
        self._num_top = num_top
        self._offset = 0
        # A character may be spread over tokens: it belongs to the one that completes it.
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(
        self, token_ids: Iterable[int], positions: Iterable[TokenLogprobs | None]
    ) -> CompletionLogprobs:
        """The next tokens; None for a prompt's first, which nothing precedes."""
        written = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
        for token_id, position in zip(token_ids, positions, strict=True):
            written.text_offset.append(self._offset)
            written.tokens.append(self._names[token_id])
            self._offset += len(self._utf8.decode(self._names.tokenizer.token_bytes(token_id)))
            if position is None:
                written.token_logprobs.append(None)
                written.top_logprobs.append(None)
            else:
                written.token_logprobs.append(_finite(position[token_id]))
                written.top_logprobs.append(self._top(token_id, position))
        return written

    def _top(self, chosen: int, position: TokenLogprobs) -> dict[str, float]:
        """The most probable tokens, and the chosen one; of two with one name, the better."""
        named: dict[str, float] = {}
        for token_id in dict.fromkeys((*_best(position, self._num_top), chosen)):
            named.setdefault(self._names[token_id], _finite(position[token_id]))
        return named


def chat_logprobs(
    names: TokenNames, num_top: int, token_ids: Iterable[int], positions: Iterable[TokenLogprobs]
) -> ChatLogprobs:
    """The log-probabilities of some tokens, as ``/v1/chat/completions`` has them."""

    def write(token_id: int, logprob: Logprob) -> TokenLogprob:
        return TokenLogprob(
            token=names[token_id],
            logprob=_finite(logprob),
            bytes=list(names.tokenizer.token_bytes(token_id)),
        )

    return ChatLogprobs(
        content=[
            ChatTokenLogprob(
                **write(token_id, position[token_id]).model_dump(),
                top_logprobs=[write(each, position[each]) for each in _best(position, num_top)],
            )
            for token_id, position in zip(token_ids, positions, strict=True)
        ]
    )


def prompt_logprobs(positions: Sequence[TokenLogprobs | None]) -> PromptLogprobs:
    """The log-probabilities of a prompt's tokens, as vLLM has them."""
    return [
        None
        if position is None
        else {
            token_id: PromptLogprob(
                logprob=_finite(each), rank=each.rank, decoded_token=each.decoded_token
            )
            for token_id, each in position.items()
        }
        for position in positions
    ]


def _best(position: TokenLogprobs, wanted: int) -> list[int]:
    """The most probable tokens, the best first."""
    ranked = sorted(position, key=lambda token_id: position[token_id].rank)
    return ranked if wanted < 0 else ranked[:wanted]


def _finite(logprob: Logprob) -> float:
    return max(logprob.logprob, LOWEST)
