"""Types of prompts, with vLLM's names."""

from typing import NotRequired, TypedDict


class TextPrompt(TypedDict):
    """A prompt given as text."""

    prompt: str
    """Text to complete."""
    cache_salt: NotRequired[str]
    """Share cached blocks only with prompts that have the same salt."""


class TokensPrompt(TypedDict):
    """A prompt given as token ids."""

    prompt_token_ids: list[int]
    """Token ids to complete."""
    prompt: NotRequired[str]
    """Text of the tokens, copied to the output."""
    cache_salt: NotRequired[str]
    """Share cached blocks only with prompts that have the same salt."""
