"""The interface of a runner that finishes its preparation while there are no requests."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable


@runtime_checkable
class HasIdleWork(Protocol):
    """A runner that can launch steps before it is prepared completely."""

    def idle_work(self) -> Iterator[None]:
        """Prepare the rest, a piece per item. Steps may be launched between two pieces."""
        ...
