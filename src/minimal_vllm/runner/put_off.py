"""The interface of a runner that need not be prepared completely before its first step."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable


@runtime_checkable
class PutsOff(Protocol):
    """A runner that can put off a part of its preparation until there are no requests."""

    def prepare_more(self) -> Iterator[None]:
        """Do what was put off, piece by piece. Steps may be launched between two pieces."""
        ...
