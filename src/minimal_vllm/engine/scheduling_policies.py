"""Who is served first.

The two policies of vLLM, under its names (``--scheduling-policy``,
https://docs.vllm.ai/en/latest/cli/serve/). Here each is a key: among unequal requests it never
changes its mind, so that who waits and who runs stand in one order.
"""

from collections.abc import Callable

from minimal_vllm.engine.request import Request

SchedulingKey = Callable[[Request], tuple[int, int]]
"""Gives each request a unique place, which it keeps: the smallest is served first and preempted
last."""


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
