"""Exercise preemption: preempt requests when blocks run out.

The idea. The length of an answer is not known in advance, so requests are admitted before it is
certain that all of their tokens will fit. At some point a request needs a block, and none is free.
Then the request that is last in order releases all of its blocks and waits again. It keeps its
tokens, so its keys and values can be computed again when it is admitted again (Kwon et al.,
*PagedAttention*, SOSP 2023, section 4.5: recomputation)::

    4 blocks of 4 tokens          A ████ ███·     B ████ ████
    A needs a slot for its 8th token: its last block has one
    B needs a third block: none is free, and B is last, so B is preempted itself
    A needs a third block: it takes one of B's

Requests are preempted from the back, so the first in order is never preempted to make room for
others. It finishes, its blocks become free, and the next request is the first.

What you have: ``self.running`` (in order of service), ``self.enqueue(request)``,
``self.pool.num_free``, ``self.release(request)`` (releases its blocks and its seat),
``plan.preempted``, a list, and of a request ``num_computed_tokens`` and ``num_preemptions``.

What to write: ``make_room`` and ``preempt``.

How it is checked: like continuous-batching, with pools that are far too small.

    minimal-vllm learn check preemption
    minimal-vllm learn run preemption
"""

from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request


class MyScheduler(Scheduler):
    """A scheduler that preempts in a way of your own."""

    def make_room(self, request: Request, missing: int, plan: Plan) -> bool:
        """Preempt requests from the back until ``missing`` blocks are free.

        Adds the preempted requests to ``plan.preempted``.

        Returns:
            False if ``request`` was preempted itself, True otherwise.
        """
        raise NotImplementedError

    def preempt(self, request: Request) -> None:
        """Move a request that was just removed from ``self.running`` back to the waiting ones.

        It keeps its tokens, but none of them is computed any more. ``num_preemptions`` is
        incremented.
        """
        raise NotImplementedError
