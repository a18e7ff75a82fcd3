"""What the endpoints' log-probabilities have in common."""

from collections.abc import Sequence

from minimal_vllm.outputs import Logprob, TokenLogprobs
from minimal_vllm.server.models import PromptLogprob, PromptLogprobs
from minimal_vllm.text.tokenizer import Tokenizer

LOWEST = -9999.0
"""Stands for minus infinity, which JSON can't write."""


class TokenNames:
    """How tokens are written: as text, or, where that might be ambiguous, by their id."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool) -> None:
        self.tokenizer = tokenizer
        self._as_ids = as_ids

    def __getitem__(self, token_id: int) -> str:
        if self._as_ids:
            return f"token_id:{token_id}"
        spelled = self.tokenizer.token_bytes(token_id)
        try:
            return spelled.decode()
        except UnicodeDecodeError:  # a part of a character; as OpenAI writes it
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def prompt_logprobs(positions: Sequence[TokenLogprobs | None]) -> PromptLogprobs:
    """The log-probabilities of a prompt's tokens, as vLLM has them."""
    return [
        None
        if position is None
        else {
            token_id: PromptLogprob(
                logprob=finite(each), rank=each.rank, decoded_token=each.decoded_token
            )
            for token_id, each in position.items()
        }
        for position in positions
    ]


def best_tokens(position: TokenLogprobs, wanted: int) -> list[int]:
    """The most probable tokens, the best first."""
    ranked = sorted(position, key=lambda token_id: position[token_id].rank)
    return ranked if wanted < 0 else ranked[:wanted]


def finite(logprob: Logprob) -> float:
    """A log-probability that JSON can write."""
    return max(logprob.logprob, LOWEST)
