"""Special tokens that a tokenizer adds to the beginning and the end of every text."""

from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing


def surround(backend: Backend, bos: str | None, eos: str | None) -> None:
    """Make ``backend`` begin every text with ``bos`` and end it with ``eos``.

    This replaces the tokenizer's own post-processor.

    Args:
        backend: the tokenizer to change.
        bos: a token of the vocabulary, or None to add nothing.
        eos: likewise.
    """
    before = [] if bos is None else [bos]
    after = [] if eos is None else [eos]
    first, second = [*before, "$A", *after], [*before, "$B:1", *after]
    backend.post_processor = TemplateProcessing(
        single=first,
        pair=[*first, *second],
        special_tokens=[(token, backend.token_to_id(token)) for token in {*before, *after}],
    )
