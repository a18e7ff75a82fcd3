"""The queue of requests that wait to be admitted, or to be admitted again."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush

from minimal_vllm.engine.request import Request, Status

SchedulingKey = Callable[[Request], tuple[int, int]]
"""Gives each request a unique place: the smallest key is served first and preempted last."""


def first_come_first_served(request: Request) -> tuple[int, int]:
    """By arrival alone."""
    return 0, request.arrival


def by_priority(request: Request) -> tuple[int, int]:
    """By priority (smaller first), then by arrival."""
    return request.priority, request.arrival


SCHEDULING_POLICIES: dict[str, SchedulingKey] = {
    "fcfs": first_come_first_served,
    "priority": by_priority,
}


class WaitingQueue:
    """Requests in the order of a policy's key.

    A preempted request comes back under the key that it always had, and so before all who
    arrived after it: no other mechanism is needed to make it resume first.
    """

    def __init__(self, key: SchedulingKey) -> None:
        self._key = key
        self._heap: list[tuple[tuple[int, int], Request]] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, request: Request) -> None:
        """Let ``request`` wait."""
        request.status = Status.WAITING
        heappush(self._heap, (self._key(request), request))
        self._length += 1

    def peek(self) -> Request:
        """Who is next; only called while someone waits."""
        while self._heap[0][1].status is not Status.WAITING:  # aborted while it waited
            heappop(self._heap)
        return self._heap[0][1]

    def pop(self) -> Request:
        """Take out who is next."""
        request = self.peek()
        heappop(self._heap)
        self._length -= 1
        return request

    def in_order(self) -> list[Request]:
        """All who wait, the next first; for viewers, it costs time."""
        return [each for _, each in sorted(self._heap) if each.status is Status.WAITING]

    def discard(self) -> None:
        """One of those who wait has ended.

        It stays in the heap until its status takes it out, or until such ones are the majority.
        """
        self._length -= 1
        if len(self._heap) > 2 * self._length + 64:
            self._heap = [entry for entry in self._heap if entry[1].status is Status.WAITING]
            heapify(self._heap)
