"""Normalizing the forms in which a user can pass a prompt."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from minimal_vllm.text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
"""A text, token ids, or a mapping with ``"prompt"`` (a text) or ``"prompt_token_ids"``, and
optionally ``"cache_salt"``. If a mapping has both, the ids are used, and the text is only returned
with the output."""


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt in the form that the engine takes."""

    text: str | None
    token_ids: Sequence[int]
    cache_salt: str | None = None


def as_list(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """Return the prompts in an argument that may be one prompt or several.

    A list of integers is one prompt.
    """
    if hasattr(prompts, "tolist"):  # an array, of NumPy's or PyTorch's integers
        prompts = prompts.tolist()
    if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable):
        return [prompts]
    several: list[Any] = list(prompts)
    return [several] if several and isinstance(several[0], Integral) else several


def tokenize_prompts(
    prompts: Sequence[Prompt], get_tokenizer: Callable[[], Tokenizer]
) -> list[TokenizedPrompt]:
    """Bring prompts into one form, encoding all texts together on all of the CPU's cores.

    Args:
        prompts: prompts in any of the supported forms.
        get_tokenizer: returns the tokenizer; called only if there is a text to encode.

    Raises:
        ValueError: a prompt has none of the forms, or ``get_tokenizer`` raises.
    """
    parsed = [_parse(prompt) for prompt in prompts]
    texts = [text for text, token_ids, _ in parsed if token_ids is None and text is not None]
    encoded = iter(get_tokenizer().encode_batch(texts) if texts else ())
    return [
        TokenizedPrompt(text, next(encoded) if token_ids is None else token_ids, cache_salt)
        for text, token_ids, cache_salt in parsed
    ]


def _parse(prompt: Prompt) -> tuple[str | None, Sequence[int] | None, str | None]:
    """Return a prompt's text, token ids and cache salt; at least one of text and ids is given."""
    if isinstance(prompt, str):
        return prompt, None, None
    if isinstance(prompt, bytes) or not isinstance(prompt, Iterable):
        raise ValueError(
            f"a prompt is {prompt!r}, but should be a text, token ids, or a mapping to them"
        )
    if not isinstance(prompt, Mapping):
        return None, prompt, None
    given = {key for key, value in prompt.items() if value is not None}
    unknown = given - {"prompt", "prompt_token_ids", "cache_salt"}
    text, token_ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    if unknown or (text is None and token_ids is None):
        raise ValueError(
            f"a prompt has {sorted(prompt)}, but should have 'prompt' or 'prompt_token_ids', and "
            f"may have 'cache_salt'"
        )
    if not isinstance(text, str | None):
        raise ValueError(f"a prompt's text is {text!r}, but should be a string")
    return text, token_ids, prompt.get("cache_salt")
