"""Encoding records as lines of JSON, and decoding them: the format of `docs/trace-format.md`."""

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
VERSION: Literal[2] = 2
"""Version of the format. It increases when the meaning of a field changes, but not for new fields.

Version 2: ``sampled_tokens``, a list, replaces ``sampled_token``, one number.
"""

Spell = Callable[[int], str]
"""Function that returns the text of a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """First line of a trace."""

    format: Literal["minimal-vllm-trace"] = FORMAT
    version: Literal[2] = VERSION
    engine: EngineFacts
    started: float = field(default_factory=time.monotonic)
    """Time at which the trace began, on the clock of the records, in seconds."""
    unix_time: float = field(default_factory=time.time)
    """Time at which the trace began, in seconds since 1970 (Unix time)."""


@dataclass(frozen=True, slots=True)
class TextsRecord:
    """Texts of the tokens that the next line uses for the first time."""

    texts: dict[int, str]
    """Token id to text."""


@dataclass(frozen=True, slots=True)
class EndRecord:
    """Last line of a trace that ended before its engine did."""

    reason: str
    """Reason why no more records were written."""


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
"""Kind of line to the type that reads and writes its fields."""
_KINDS = {adapter._type: kind for kind, adapter in ADAPTERS.items()}
_HEADER = TypeAdapter(Header)


def encode_header(header: Header) -> bytes:
    """Return the header as a line of JSON that ends with a line feed."""
    return _HEADER.dump_json(header) + b"\n"


def encode(line: Line) -> bytes:
    """Return the record as a line of JSON that ends with a line feed, without default values."""
    kind = _KINDS[type(line)]
    fields = ADAPTERS[kind].dump_json(line, exclude_defaults=True)[1:-1]
    return b'{"kind":"%s"%s%s}\n' % (kind.encode(), b"," if fields else b"", fields)


def decode(text: bytes) -> Line:
    """Return the record that a line holds.

    Raises:
        ValueError: the line holds no record.
    """
    fields = from_json(text)
    if not isinstance(fields, dict) or fields.get("kind") not in ADAPTERS:
        raise ValueError(f"its kind should be one of {', '.join(ADAPTERS)}")
    return ADAPTERS[fields.pop("kind")].validate_python(fields)  # type: ignore[no-any-return]


def decode_header(text: bytes) -> Header:
    """Return the header that a line holds.

    Raises:
        ValueError: the line holds no header, or the header of another version of the format.
    """
    try:
        fields = from_json(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise ValueError(f'its first line should hold "format": "{FORMAT}"')
    version = fields.get("version")
    if isinstance(version, int) and version != VERSION:
        advice = (
            "read it with the newer program that wrote it"
            if version > VERSION
            else "record it again with this program, or read it with the one that wrote it"
        )
        raise ValueError(
            f"it has version {version} of the format, but this program reads version {VERSION}: "
            f"{advice}"
        )
    return _HEADER.validate_python(fields)


class LineEncoder:
    """Encodes records, and writes the text of each token before its first use.

    Args:
        spell: returns the text of a token; None to write no texts.
    """

    def __init__(self, spell: Spell | None) -> None:
        self._spell = spell
        self._spelt: set[int] = set()

    def encode(self, record: Record) -> bytes:
        """Return the record's line, after a line of texts if it uses new tokens."""
        return self.encode_texts(_tokens_in(record)) + encode(record)

    def encode_texts(self, token_ids: set[int]) -> bytes:
        """Return a line with the texts of the tokens that were not written before; may be empty."""
        new = token_ids - self._spelt
        if self._spell is None or not new:
            return b""
        self._spelt |= new
        return encode(TextsRecord({token_id: self._spell(token_id) for token_id in sorted(new)}))

    def forget(self) -> None:
        """Write all texts again from now on, for a reader that has not received any of them."""
        self._spelt.clear()


def _tokens_in(record: Record) -> set[int]:
    if isinstance(record, RequestRecord):
        return set(record.prompt_token_ids)
    if isinstance(record, StepRecord):
        return {token_id for entry in record.scheduled for token_id in entry.sampled_tokens}
    return set()
