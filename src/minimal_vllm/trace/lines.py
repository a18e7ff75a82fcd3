"""Records as lines of JSON, and back: the format of `docs/trace-format.md`."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic_core import from_json

from minimal_vllm.trace.facts import EngineFacts
from minimal_vllm.trace.step_record import (
    AbortRecord,
    PlanRecord,
    Record,
    RequestRecord,
    ResetRecord,
    StepRecord,
)

FORMAT: Literal["minimal-vllm-trace"] = "minimal-vllm-trace"
VERSION: Literal[1] = 1
"""Raised when what is written changes its meaning; new fields may come without."""

Spell = Callable[[int], str]
"""The text of a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first line."""

    format: Literal["minimal-vllm-trace"] = FORMAT
    version: Literal[1] = VERSION
    engine: EngineFacts
    started: float = field(default_factory=time.monotonic)
    """On the clock of the records' times, in seconds."""
    unix_time: float = field(default_factory=time.time)
    """The same moment, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class TextsRecord:
    """The texts of tokens that the next line names for the first time."""

    texts: dict[int, str]


@dataclass(frozen=True, slots=True)
class EndRecord:
    """The last line of a trace that was ended before its engine."""

    reason: str


Line = Record | TextsRecord | EndRecord

ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "request": TypeAdapter(RequestRecord),
    "abort": TypeAdapter(AbortRecord),
    "reset": TypeAdapter(ResetRecord),
    "plan": TypeAdapter(PlanRecord),
    "step": TypeAdapter(StepRecord),
    "texts": TypeAdapter(TextsRecord),
    "end": TypeAdapter(EndRecord),
}
"""For each kind of line, what is on it."""
_KINDS = {adapter._type: kind for kind, adapter in ADAPTERS.items()}
_HEADER = TypeAdapter(Header)


def encode_header(header: Header) -> bytes:
    """One line, with its end."""
    return _HEADER.dump_json(header) + b"\n"


def encode(line: Line) -> bytes:
    """One line, with its end; fields that have their default are left out."""
    kind = _KINDS[type(line)]
    fields = ADAPTERS[kind].dump_json(line, exclude_defaults=True)[1:-1]
    return b'{"kind":"%s"%s%s}\n' % (kind.encode(), b"," if fields else b"", fields)


def decode(text: bytes) -> Line:
    """The record on a line.

    Raises:
        ValueError: it is none.
    """
    fields = from_json(text)
    if not isinstance(fields, dict) or fields.get("kind") not in ADAPTERS:
        raise ValueError(f"its kind should be one of {', '.join(ADAPTERS)}")
    return ADAPTERS[fields.pop("kind")].validate_python(fields)  # type: ignore[no-any-return]


def decode_header(text: bytes) -> Header:
    """The header on a line.

    Raises:
        ValueError: it is none, or one of another version.
    """
    try:
        fields = from_json(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise ValueError(f'its first line should hold "format": "{FORMAT}"')
    version = fields.get("version")
    if isinstance(version, int) and version > VERSION:
        raise ValueError(
            f"it has version {version} of the format, and this program knows versions up to "
            f"{VERSION}: use a newer one"
        )
    return _HEADER.validate_python(fields)


class LineEncoder:
    """Encodes records, each token's text before its first use.

    Args:
        spell: None: no texts are known.
    """

    def __init__(self, spell: Spell | None) -> None:
        self._spell = spell
        self._spelt: set[int] = set()

    def encode(self, record: Record) -> bytes:
        """One line, or two."""
        return self.encode_texts(_tokens_in(record)) + encode(record)

    def encode_texts(self, token_ids: set[int]) -> bytes:
        """A line with the texts of those of these tokens that had none yet."""
        new = token_ids - self._spelt
        if self._spell is None or not new:
            return b""
        self._spelt |= new
        return encode(TextsRecord({token_id: self._spell(token_id) for token_id in sorted(new)}))

    def forget(self) -> None:
        """Begin anew, for a reader that has seen nothing yet."""
        self._spelt.clear()


def _tokens_in(record: Record) -> set[int]:
    if isinstance(record, RequestRecord):
        return set(record.prompt_token_ids)
    if isinstance(record, StepRecord):
        sampled = {entry.sampled_token for entry in record.scheduled}
        return {token_id for token_id in sampled if token_id is not None}
    return set()
