"""Log-probabilities: what both endpoints need to write them."""

from collections.abc import Sequence

from minimal_vllm.outputs import Logprob, TokenLogprobs
from minimal_vllm.server.models import PromptLogprob, PromptLogprobs
from minimal_vllm.text.tokenizer import Tokenizer

LOWEST = -9999.0
"""Written in place of minus infinity, which JSON doesn't have."""


class TokenNames:
    r"""Names of tokens in an answer: their text, or their ids if the client asks for them.

    A token that is only a part of a character is written as ``bytes:\xc3``.
    """

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
    """Return the log-probabilities of a prompt's tokens in vLLM's form."""
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
    """Return the ``wanted`` most probable tokens, the best first; -1: all."""
    ranked = sorted(position, key=lambda token_id: position[token_id].rank)
    return ranked if wanted < 0 else ranked[:wanted]


def finite(logprob: Logprob) -> float:
    """Return a log-probability that JSON can write."""
    return max(logprob.logprob, LOWEST)
