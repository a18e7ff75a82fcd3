"""Exercise beat-fcfs: serve in a better order than that of arrival.

The idea. First come, first served is fair and never forgets anybody. But prompts differ: a few are
a hundred times longer than most, and whoever comes behind such a one waits for it. The *tail* of
the waiting times, the slowest one in a hundred, is what users complain about.

    waiting     a prompt of 20,000 tokens, then five of 200
    in order    all five wait for the 20,000
    otherwise   the five are done in a moment, and the long one hardly notices

But beware: if short prompts always go first, and come fast enough, a long one waits for ever.

What to write: ``place``, which gives each request its place in the order of service: the smallest
goes first, and is preempted last. It must be different for each request and must never change: so
it can depend on what is known at the start only. Or write another scheduler altogether.

How it is checked: as any scheduler (``minimal-vllm check --scheduler``). Then in the simulator:
Qwen3-8B on an H100, 10 requests per second, 3,000 prompt tokens on average with a long tail. All
must end, and the 99th percentile of the time to first token must be at least a tenth below that of
first come, first served.

    minimal-vllm learn check beat-fcfs
    minimal-vllm learn run beat-fcfs
"""

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.step.request import Request


def place(request: Request) -> tuple[int, int]:
    """The request's place in the order of service.

    First come, first served would be ``(0, request.arrival)``: ``arrival`` is 0 for the first
    request, 1 for the second, and so on.
    """
    raise NotImplementedError(
        "give those with few request.num_prompt_tokens a smaller place; end it with "
        "request.arrival, so that no two are equal"
    )


class MyScheduler(Scheduler):
    """The engine's scheduler, in an order of your own."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        super().__init__(config, pool)
        self.key = place
