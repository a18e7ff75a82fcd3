"""Building the tokenizer of a GGUF file, equal to the one in the original model's tokenizer.json.

The file's metadata has the tokens, and their merges or scores. The rule that splits text into words
is only named, by a keyword of llama.cpp (``tokenizer.ggml.pre``). The rules here are those of the
models' tokenizer.json files, as collected in llama.cpp's ``llama-vocab.cpp``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import PreTokenizer

from minimal_vllm.formats.gguf_file import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, GgufFile
from minimal_vllm.text.special_tokens import surround

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_QWEN2 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_SEED_CODER = _QWEN2.replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")

_WORDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), (_QWEN2,)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe"), (_LLAMA3,)),
    "seed-coder": (_SEED_CODER,),
    "tekken": (_TEKKEN,),
    "deepseek-coder": _DEEPSEEK_CODER,
}
"""``tokenizer.ggml.pre`` -> patterns of words, applied one after another."""

_GPT2 = ("gpt-2",)
_GPT2_WITH_SINGLE_DIGITS = ("smollm", "starcoder", "refact")
PRE_TOKENIZERS = (*_WORDS, *_GPT2, *_GPT2_WITH_SINGLE_DIGITS)
"""Supported values of ``tokenizer.ggml.pre``."""

# A word that is in the vocabulary becomes one token, even if no merges lead to it.
_IGNORE_MERGES = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")
# Every text begins with BOS, unless tokenizer.ggml.add_bos_token says otherwise.
_ADD_BOS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")
_NORMALIZE_NFC = ("qwen2",)

_NAMED_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_PREFIX = "tokenizer.ggml."
_SPACE = "▁"
"""Character that stands for a space in SentencePiece's tokens."""


def read_tokenizer(file: GgufFile) -> tuple[Backend, dict[str, Any]]:
    """Build the tokenizer, and the equivalent of its tokenizer_config.json.

    Raises:
        ValueError: the file has no tokenizer, or one whose kind or pre-tokenizer is unsupported, or
            whose lists contradict each other.
    """
    kind = file.metadata.get(_PREFIX + "model")
    tokens = _list(file, "tokens", str)
    kinds = _list(file, "token_type", int) or [NORMAL] * len(tokens)
    if not tokens or len(kinds) != len(tokens):
        raise ValueError(
            f"{file.path}: its tokenizer has {len(tokens)} tokens, but {len(kinds)} token types"
        )
    if len(set(tokens)) != len(tokens):
        raise ValueError(f"{file.path}: its tokenizer has two tokens with the same text")
    if kind == "gpt2":
        backend = _byte_level(file, tokens)
    elif kind == "llama":
        backend = _sentencepiece(file, tokens, kinds)
    else:
        raise ValueError(
            f"{file.path}: its tokenizer ({_PREFIX}model) is {kind!r}, but must be gpt2 or llama: "
            "give a folder with another tokenizer as --tokenizer"
        )
    _add_tokens(backend, tokens, kinds)
    named = _named_tokens(file, tokens, kinds)
    _add_beginning_and_end(backend, file, named)
    return backend, {**named, **_chat_templates(file)}


def _byte_level(file: GgufFile, tokens: list[str]) -> Backend:
    """Build a byte-level BPE tokenizer, the kind of GPT-2 and most models since."""
    pre = file.metadata.get(_PREFIX + "pre")
    if pre not in PRE_TOKENIZERS:
        raise ValueError(
            f"{file.path}: its pre-tokenizer ({_PREFIX}pre) is {pre!r}, but must be one of "
            f"{', '.join(PRE_TOKENIZERS)}: give a folder with the original tokenizer as --tokenizer"
        )
    merges = [_pair(merge) for merge in _list(file, "merges", str)]
    backend = _bpe(file, tokens, merges, ignore_merges=pre in _IGNORE_MERGES)
    backend.pre_tokenizer = _pre_tokenizer(str(pre))
    backend.decoder = decoders.ByteLevel()
    if pre in _NORMALIZE_NFC:
        backend.normalizer = normalizers.NFC()
    return backend


def _pre_tokenizer(pre: str) -> PreTokenizer:
    if pre in _GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    if pre in _GPT2_WITH_SINGLE_DIGITS:
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([digits, words])
    steps = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in _WORDS[pre]]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*steps, *[digits] * (pre == "deepseek-coder"), to_bytes])


def _sentencepiece(file: GgufFile, tokens: list[str], kinds: list[int]) -> Backend:
    """Build a SentencePiece BPE tokenizer with byte fallback, the kind of Llama 2."""
    merges = [_pair(merge) for merge in _list(file, "merges", str)]
    if not merges:
        scores = _list(file, "scores", float | int)
        if len(scores) != len(tokens):
            raise ValueError(
                f"{file.path}: its tokenizer has {len(tokens)} tokens, but {len(scores)} scores to "
                "compute the merges from"
            )
        merges = merges_by_score(tokens, kinds, scores)
    unknown = next(
        (token for token, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None
    )
    backend = _bpe(file, tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    decoding = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    normalizing: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    if file.metadata.get(_PREFIX + "add_space_prefix", True):
        normalizing.insert(0, normalizers.Prepend(_SPACE))
        decoding.append(decoders.Strip(" ", left=1, right=0))
    backend.normalizer = normalizers.Sequence(normalizing)
    backend.decoder = decoders.Sequence(decoding)
    return backend


def merges_by_score(
    tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """Return the merges of a SentencePiece BPE model, which stores only the tokens' scores.

    The rank of a merge follows from the score of the token that it produces. Source: transformers'
    ``generate_merges``.
    """
    ids = {token: index for index, token in enumerate(tokens) if kinds[index] == NORMAL}
    found = []
    for token, index in ids.items():
        splits = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = sorted(
            (ids[left], ids[right], left, right)
            for left, right in splits
            if left in ids and right in ids
        )
        found += [(scores[index], len(left), len(right), left, right) for *_, left, right in pairs]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


def _bpe(
    file: GgufFile, tokens: list[str], merges: list[tuple[str, str]], **options: Any
) -> Backend:
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    try:
        return Backend(models.BPE(vocab, merges, **options))
    except Exception as error:  # tokenizers raises nothing more specific
        raise ValueError(
            f"{file.path}: its tokenizer's merges don't fit its tokens: {error}"
        ) from error


def _pair(merge: str) -> tuple[str, str]:
    """Split a merge at its first space after the first character."""
    left, _, right = merge[1:].partition(" ")
    return merge[:1] + left, right


def _add_tokens(backend: Backend, tokens: list[str], kinds: list[int]) -> None:
    """Add the tokens that are matched before text is split: special ones, and e.g. ``<think>``."""
    for kind in (CONTROL, USER_DEFINED):
        backend.add_tokens(
            [
                AddedToken(token, normalized=False, special=kind == CONTROL)
                for token, token_kind in zip(tokens, kinds, strict=True)
                if token_kind == kind and token
            ]
        )


def _named_tokens(file: GgufFile, tokens: list[str], kinds: list[int]) -> dict[str, str]:
    """Return ``bos_token``, ``eos_token`` and so on, without ordinary tokens.

    Some files name an ordinary token as the padding token.
    """
    named = {}
    for name, key in _NAMED_TOKENS.items():
        token_id = file.metadata.get(_PREFIX + key)
        if token_id is None:
            continue
        if type(token_id) is not int or not 0 <= token_id < len(tokens):
            raise ValueError(
                f"{file.path}: {_PREFIX}{key} is {token_id!r}, but there are {len(tokens)} tokens"
            )
        if kinds[token_id] in (UNKNOWN, CONTROL, USER_DEFINED):
            named[name] = tokens[token_id]
    return named


def _add_beginning_and_end(backend: Backend, file: GgufFile, named: Mapping[str, str]) -> None:
    """Make the tokenizer add BOS and EOS to every text, if the file asks for it."""
    pre, is_sentencepiece = file.metadata.get(_PREFIX + "pre"), backend.model.byte_fallback
    begins = file.metadata.get(_PREFIX + "add_bos_token", is_sentencepiece or pre in _ADD_BOS)
    ends = file.metadata.get(_PREFIX + "add_eos_token", False)
    bos = named.get("bos_token") if begins else None
    eos = named.get("eos_token") if ends else None
    if bos is not None or eos is not None:
        surround(backend, bos, eos)


def _chat_templates(file: GgufFile) -> dict[str, Any]:
    default = file.metadata.get("tokenizer.chat_template")
    names = file.metadata.get("tokenizer.chat_templates")
    named = {
        name: file.metadata.get(f"tokenizer.chat_template.{name}")
        for name in (names if isinstance(names, list) else [])
    }
    templates = {"default": default, **named}
    known = {name: text for name, text in templates.items() if isinstance(text, str)}
    if list(known) == ["default"]:
        return {"chat_template": default}
    listed = [{"name": name, "template": text} for name, text in known.items()]
    return {"chat_template": listed} if listed else {}


def _list(file: GgufFile, key: str, wanted: Any) -> list[Any]:
    found = file.metadata.get(_PREFIX + key, [])
    if not isinstance(found, list) or not all(isinstance(each, wanted) for each in found):
        raise ValueError(f"{file.path}: {_PREFIX}{key} is not a list of the right type")
    return found
