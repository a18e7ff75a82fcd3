"""Extensions of a server by other packages: an observer of its engine, and routes.

The view is one. It registers an entry point of the group ``minimal_vllm.server_extensions``, so
that the server does not import it.
"""

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from minimal_vllm.server.pace import Pace
from minimal_vllm.trace.step_record import Record

if TYPE_CHECKING:
    from fastapi import APIRouter

    from minimal_vllm.llm import LLM
    from minimal_vllm.server.async_engine import AsyncEngine

ENTRY_POINT_GROUP = "minimal_vllm.server_extensions"


class ServerExtension(Protocol):
    """An observer of the engine that has routes of its own.

    The engine's thread calls it with each record; all its methods are called in the event loop.
    """

    pace: Pace
    """The pace at which the engine steps."""

    def __call__(self, record: Record, /) -> None:
        """Take in a record of the engine."""

    def attach(self, llm: "LLM", engine: "AsyncEngine") -> None:
        """Prepare for an engine, before its first step."""

    def routes(self) -> "APIRouter":
        """Return the routes to add to the server."""

    def start(self) -> None:
        """Begin, in the running event loop."""

    def close(self) -> None:
        """End all open streams, and let the engine run on."""


def load_extension(name: str) -> ServerExtension:
    """Make the extension that is registered under ``name``.

    Raises:
        ValueError: no installed package registers one.
    """
    found = entry_points(group=ENTRY_POINT_GROUP, name=name)
    if not found:
        raise ValueError(f"no installed package has a server extension named {name!r}")
    extension: ServerExtension = next(iter(found)).load()()
    return extension
