r"""Reading the body of a request as JSON that can be written out again.

Python's parser accepts values that can't be written as JSON in UTF-8: ``NaN``, ``Infinity``,
numbers that overflow to infinity, and unpaired surrogates (``"\ud800"``). Schemas, metadata and
template variables may hold any value, and are copied into prompts, grammars and answers, so such
values are refused before anything reads them.
"""

import json
import math
from codecs import BOM_UTF8
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from minimal_vllm.server.errors import ApiError

_NOT_FINITE = "numbers must be finite"
_NOT_TEXT = "a text must not have unpaired surrogates"


class JsonRoute(APIRoute):
    """Route that reads the body with ``parse_body``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler for a request that reads its body with ``parse_body``."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class _JsonRequest(Request):
    """Request whose body is read with ``parse_body``."""

    async def json(self) -> Any:
        """Return the body's value."""
        return parse_body(await self.body())


def parse_body(body: bytes) -> Any:
    """Return the value of a JSON text in UTF-8.

    Raises:
        ApiError: a number isn't finite, or a string has an unpaired surrogate.
        ValueError, RecursionError: the body can't be read as JSON.
    """
    text = body.removeprefix(BOM_UTF8).decode()
    all_finite = True

    def read_number(digits: str) -> float:
        nonlocal all_finite
        number = float(digits)
        all_finite = all_finite and math.isfinite(number)
        return number

    value = json.loads(text, parse_float=read_number, parse_constant=read_number)
    # UTF-8 can't encode surrogates, so they can only be written as escapes.
    if not all_finite or "\\ud" in text or "\\uD" in text:
        _check(value)
    return value


def _check(value: Any) -> None:
    fault = next(_faults(value), None)
    if fault is None:
        return
    path, complaint = fault
    name = ".".join(path)
    raise ApiError(400, f"{name}: {complaint}" if name else complaint, param=name or None)


def _faults(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path and a complaint for each value that can't be written as JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, _NOT_FINITE
    elif isinstance(value, str) and not _is_text(value):
        yield path, _NOT_TEXT
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _faults(each, (*path, str(index)))
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _faults(key, path)
            yield from _faults(each, (*path, key))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
