"""A model's tokenizer, read from the model's files without importing transformers."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from minimal_vllm.formats.gguf_file import find_gguf, read_gguf
from minimal_vllm.text.gguf_tokenizer import read_tokenizer
from minimal_vllm.text.special_tokens import surround

_HEED_CONFIGURED_ENDS = frozenset(
    {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer"}
)
"""Tokenizer classes, without the suffix "Fast", that obey ``add_bos_token``, ``add_eos_token``."""

REPLACEMENT_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""Character that replaces bytes that are not UTF-8 in decoded text."""


class Tokenizer:
    """A model's tokenizer. It behaves like ``transformers.AutoTokenizer`` with the same folder.

    Attributes:
        folder: the model's folder, or its GGUF file.
        config: content of ``tokenizer_config.json``, or its equivalent from a GGUF file's metadata;
            empty without either.
        special_tokens: the named special tokens, such as ``{"eos_token": "</s>"}``.
        special_token_ids: tokens that ``skip_special_tokens`` leaves out of a text.

    Raises:
        ValueError: the folder has neither a ``tokenizer.json`` nor a GGUF file, or a file in it
            can't be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._backend, self.config = _load(self.folder)
        self.special_tokens: dict[str, str] = {
            name: _content(token)
            for name, token in self.config.items()
            if name.endswith("_token") and isinstance(token, str | dict)
        }
        _add_configured_tokens(self._backend, self.config, list(self.special_tokens.values()))
        _heed_configured_ends(self._backend, self.config, self.special_tokens)
        self.special_token_ids = frozenset(
            token_id
            for token_id, token in self._backend.get_added_tokens_decoder().items()
            if token.special
        )
        self._context = _plain_token(self._backend)
        self._context_text = self._backend.decode(self._context, skip_special_tokens=False)
        self._token_bytes: dict[int, bytes] = {}

    @property
    def backend(self) -> Backend:
        """Return the tokenizer of Hugging Face's ``tokenizers`` library."""
        return self._backend

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. A model may have more logits than that."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a sequence, or None."""
        return self._backend.token_to_id(self.special_tokens.get("bos_token", ""))

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a sequence, or None. The model's configuration may add more."""
        return self._backend.token_to_id(self.special_tokens.get("eos_token", ""))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text. Special tokens spelled out in it are recognized.

        Args:
            text: the text.
            add_special_tokens: whether to add the special tokens that the tokenizer puts around a
                text, usually BOS. Text from a chat template already has them.

        Raises:
            ValueError: the text can't be encoded as UTF-8.
        """
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """Return the token ids of several texts, encoded in parallel; see ``encode``.

        Raises:
            ValueError: a text can't be encoded as UTF-8.
        """
        try:
            encodings = self._backend.encode_batch_fast(
                list(texts), add_special_tokens=add_special_tokens
            )
        except TypeError as error:
            raise ValueError(
                "a text can't be tokenized, because it has unpaired surrogates, as a string does "
                "that was read from bytes that are not UTF-8"
            ) from error
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of a complete sequence of tokens."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """Return the text of one token inside a text; U+FFFD stands for a part of a character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes that one token adds to a text; none if there is no such token.

        Unlike the texts of tokens, their bytes can be joined: a character that is spread over
        several tokens then becomes whole.
        """
        if token_id not in self._token_bytes:
            token = self._backend.id_to_token(token_id)
            self._token_bytes[token_id] = b"" if token is None else self._spell(token_id, token)
        return self._token_bytes[token_id]

    def _spell(self, token_id: int, token: str) -> bytes:
        # Some decoders drop the space before a text's first word, so decode after another token.
        text = self._backend.decode([*self._context, token_id], skip_special_tokens=False)
        text = text[len(self._context_text) :]
        return text.encode() if REPLACEMENT_CHARACTER not in text else _raw_bytes(token)

    def first_token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token at the beginning of a text, without its leading space.

        Only some tokenizers drop the space; see ``token_bytes``.
        """
        text = self._backend.decode([token_id], skip_special_tokens=False)
        return text.encode() if REPLACEMENT_CHARACTER not in text else self.token_bytes(token_id)


def _load(folder: Path) -> tuple[Backend, dict[str, Any]]:
    if not (folder / "tokenizer.json").is_file():
        gguf = find_gguf(folder)
        if gguf is not None:
            return read_tokenizer(read_gguf(gguf))
    return _load_backend(folder), _load_config(folder)


def _load_backend(folder: Path) -> Backend:
    path = folder / "tokenizer.json"
    if not path.is_file():
        found = "only tokenizer.model" if (folder / "tokenizer.model").is_file() else "none"
        raise ValueError(
            f"{folder} should hold a tokenizer.json, but there is {found}: convert the tokenizer "
            "with transformers' AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise ValueError(f"{path} is not a tokenizer that can be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _load_config(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json; older ones are merged with special_tokens_map.json."""
    config = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= read_json(folder / "special_tokens_map.json")
    return config


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is no such file.

    Raises:
        ValueError: the file doesn't hold a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object, not {type(content).__name__}")
    return content


def _content(token: object) -> str:
    """Return the text of a token that a file stores as a string or as an object with fields."""
    match token:
        case str(content) | {"content": str(content)}:
            return content
    raise ValueError(
        f"tokenizer_config.json: a token must be a text, or an object with its content, not "
        f"{token!r}"
    )


def _add_configured_tokens(backend: Backend, config: dict[str, Any], named: list[str]) -> None:
    """Add tokens that only the configuration lists or marks as special, as transformers does."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens(
        [AddedToken(**token) for token in _listed_tokens(config) if _content(token) not in known]
    )

    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    if not isinstance(extra, list):
        raise ValueError(
            f"tokenizer_config.json: extra_special_tokens must be a list or object, not {extra!r}"
        )
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in (*named, *map(_content, extra))
            if token not in special
        ]
    )


def _listed_tokens(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tokens in ``added_tokens_decoder``, in the order of their ids."""
    tokens = config.get("added_tokens_decoder") or {}
    if not isinstance(tokens, dict) or not all(
        token_id.isdecimal() and isinstance(token, dict) for token_id, token in tokens.items()
    ):
        raise ValueError(
            f"tokenizer_config.json: added_tokens_decoder must map token ids to objects, not "
            f"{tokens!r}"
        )
    return [tokens[token_id] for token_id in sorted(tokens, key=int)]


def _heed_configured_ends(
    backend: Backend, config: dict[str, Any], special_tokens: dict[str, str]
) -> None:
    """Let ``add_bos_token`` and ``add_eos_token`` override tokenizer.json, as in vLLM.

    Only some tokenizer classes do this; for others, tokenizer.json decides. A token that the
    configuration doesn't name isn't added.
    """
    heeds = str(config.get("tokenizer_class", "")).removesuffix("Fast") in _HEED_CONFIGURED_ENDS
    begins, ends = config.get("add_bos_token"), config.get("add_eos_token")
    if not heeds or (begins is None and ends is None):
        return
    bos = special_tokens.get("bos_token") if begins in (None, True) else None
    eos = special_tokens.get("eos_token") if ends is True else None
    surround(backend, bos, eos)


def _plain_token(backend: Backend) -> list[int]:
    """Return a token that has visible text, as a list; empty if there is none.

    Other tokens are decoded after it.
    """
    for token, token_id in sorted(backend.get_vocab().items(), key=lambda item: item[1]):
        text = backend.decode([token_id], skip_special_tokens=False)
        if text.strip() and REPLACEMENT_CHARACTER not in text and not _BYTE_TOKEN.fullmatch(token):
            return [token_id]
    return []


_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
"""Pattern of the tokens that stand for single bytes, in tokenizers with byte fallback."""


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character stands for in byte-level BPE.

    Printable Latin-1 characters stand for themselves; the other bytes are numbered from U+0100.
    Source: Radford et al., GPT-2, 2019, ``encoder.py``.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }


_BYTE_ALPHABET = _byte_alphabet()


def _raw_bytes(token: str) -> bytes:
    """Return the bytes that a token's name stands for, if they are not UTF-8 on their own."""
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(byte[1])
    if all(character in _BYTE_ALPHABET for character in token):
        return bytes(_BYTE_ALPHABET[character] for character in token)
    return token.encode()
