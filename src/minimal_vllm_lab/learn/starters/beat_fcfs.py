"""Exercise beat-fcfs: find a better order than first come, first served.

The idea. First come, first served is fair and never starves a request. But prompts differ: a few
are a hundred times longer than most, and all requests that arrive after such a prompt wait for it.
The *tail* of the waiting times, the slowest one percent, is what users complain about.

    waiting     a prompt of 20,000 tokens, then five of 200 tokens
    in order    all five wait for the 20,000 tokens
    otherwise   the five finish in a moment, and the long one is hardly delayed

But if short prompts always go first, and arrive fast enough, a long one waits forever.

What to write: ``order_key``, which returns the sort key of each request: the request with the
smallest key is served first and preempted last. Keys must be unique and must never change, so they
can only depend on what is known when the request arrives. You may also write another scheduler
altogether.

What you have: ``request.arrival``, ``request.num_prompt_tokens``, and ``request.max_num_tokens``,
the most that prompt and answer may have together. ``len(request.token_ids)`` grows with the answer,
so it is no key.

How it is checked: first like any scheduler (``minimal-vllm check --scheduler``), and then in the
simulator: Qwen3-8B on an H100, 10 requests per second, 3,000 prompt tokens on average with a long
tail. All requests must finish, with whole prompts and whole answers, and the 99th percentile of the
time to first token must be at least 10 % below that of first come, first served.

    minimal-vllm learn check beat-fcfs
    minimal-vllm learn check beat-fcfs --leaderboard board.json --as YOUR-NAME
    minimal-vllm learn run beat-fcfs
"""

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.step.request import Request


def order_key(request: Request) -> tuple[int, int]:
    """Return the key by which requests are ordered: the smallest is served first.

    First come, first served would be ``(0, request.arrival)``: ``arrival`` is 0 for the first
    request, 1 for the second, and so on.
    """
    raise NotImplementedError


class MyScheduler(Scheduler):
    """The engine's scheduler, with an order of your own."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        super().__init__(config, pool)
        self.key = order_key
