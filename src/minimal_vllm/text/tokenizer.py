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
"""Values of ``tokenizer_class``, without "Fast"."""

REPLACEMENT_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""What stands in a decoded text for bytes that are not UTF-8."""


class Tokenizer:
    """Encodes and decodes as ``transformers.AutoTokenizer`` does with the same folder.

    Attributes:
        folder: the model's folder, or its GGUF file.
        config: what ``tokenizer_config.json`` holds, or the same from a GGUF file's metadata;
            empty without either.
        special_tokens: the named ones, such as ``{"eos_token": "</s>"}``.
        special_token_ids: all that ``skip_special_tokens`` leaves out of a text.

    Raises:
        ValueError: if the folder has neither a ``tokenizer.json`` nor a GGUF file, or a file in
            it cannot be read.
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
        """How many tokens there are, added ones included; a model's logits may be more."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a sequence, if there is one."""
        return self._backend.token_to_id(self.special_tokens.get("bos_token", ""))

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a sequence, if there is one; a model's configuration may add more."""
        return self._backend.token_to_id(self.special_tokens.get("eos_token", ""))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text. Special tokens written out in it are recognised.

        ``add_special_tokens`` adds what the tokenizer puts around a text, mostly a BOS token; a
        chat template's text has it already.
        """
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """``encode`` for several texts, which share the processor's cores.

        Raises:
            ValueError: one of them can't be written as UTF-8.
        """
        try:
            encodings = self._backend.encode_batch_fast(
                list(texts), add_special_tokens=add_special_tokens
            )
        except TypeError as error:
            raise ValueError(
                "a text can't be tokenized: it has halves of surrogate pairs, as a string has "
                "that was read from bytes that are not UTF-8"
            ) from error
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of some tokens, taken as a whole text."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """The text of one token inside a text; U+FFFD if it is only a part of a character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that one token adds to a text; none if there is no such token.

        Unlike texts, the bytes of tokens can simply be joined: a character that is spread over
        several tokens is whole again then.
        """
        if token_id not in self._token_bytes:
            token = self._backend.id_to_token(token_id)
            self._token_bytes[token_id] = b"" if token is None else self._spell(token_id, token)
        return self._token_bytes[token_id]

    def _spell(self, token_id: int, token: str) -> bytes:
        # Some decoders drop the space before a text's first word: so decode after another token.
        text = self._backend.decode([*self._context, token_id], skip_special_tokens=False)
        text = text[len(self._context_text) :]
        return text.encode() if REPLACEMENT_CHARACTER not in text else _raw_bytes(token)

    def first_token_bytes(self, token_id: int) -> bytes:
        """``token_bytes`` of a token with which a text begins: it may lack its leading space."""
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
            "with transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise ValueError(f"{path} is not a tokenizer that can be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _load_config(folder: Path) -> dict[str, Any]:
    """``tokenizer_config.json``, with ``special_tokens_map.json`` where it is the older kind."""
    config = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= read_json(folder / "special_tokens_map.json")
    return config


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of a model's folder; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object, not {type(content).__name__}")
    return content


def _content(token: str | dict[str, Any]) -> str:
    """A token's text: the files write it alone, or as one field of several."""
    return token if isinstance(token, str) else str(token["content"])


def _add_configured_tokens(backend: Backend, config: dict[str, Any], named: list[str]) -> None:
    """Adds tokens that only the configuration knows, or knows to be special, as HF does."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    backend.add_tokens(
        [AddedToken(**token) for _, token in listed if token["content"] not in known]
    )

    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in (*named, *map(_content, extra))
            if token not in special
        ]
    )


def _heed_configured_ends(
    backend: Backend, config: dict[str, Any], special_tokens: dict[str, str]
) -> None:
    """Let ``add_bos_token`` and ``add_eos_token`` overrule tokenizer.json, as in vLLM.

    Only some classes of tokenizers do so; for others, the file has the last word. A token that has
    no name isn't added.
    """
    heeds = str(config.get("tokenizer_class", "")).removesuffix("Fast") in _HEED_CONFIGURED_ENDS
    begins, ends = config.get("add_bos_token"), config.get("add_eos_token")
    if not heeds or (begins is None and ends is None):
        return
    bos = special_tokens.get("bos_token") if begins in (None, True) else None
    eos = special_tokens.get("eos_token") if ends is True else None
    surround(backend, bos, eos)


def _plain_token(backend: Backend) -> list[int]:
    """A token with a text of its own, for others to be decoded after; none if there is none."""
    for token, token_id in sorted(backend.get_vocab().items(), key=lambda item: item[1]):
        text = backend.decode([token_id], skip_special_tokens=False)
        if text.strip() and REPLACEMENT_CHARACTER not in text and not _BYTE_TOKEN.fullmatch(token):
            return [token_id]
    return []


_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
"""How tokenizers with byte fallback write a byte for which they have no token."""


def _byte_alphabet() -> dict[str, int]:
    """The character with which byte-level BPE writes each byte.

    Printable characters of Latin-1 stand for themselves, the other bytes are counted up from
    U+0100. Source: Radford et al., GPT-2, 2019, ``encoder.py``.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }


_BYTE_ALPHABET = _byte_alphabet()


def _raw_bytes(token: str) -> bytes:
    """The bytes that the name of a token stands for, if they are not UTF-8 by themselves."""
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(byte[1])
    if all(character in _BYTE_ALPHABET for character in token):
        return bytes(_BYTE_ALPHABET[character] for character in token)
    return token.encode()
