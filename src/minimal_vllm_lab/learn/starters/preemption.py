"""Exercise preemption: when memory runs out, somebody has to go, and to come back.

The idea. Nobody knows how long an answer will be, so requests are admitted before it is known
whether all of their tokens will fit. One day a request needs a block, and none is free. Then the
one that came last gives up all of its blocks and waits again. Its tokens are kept, so that
its keys and values can be computed again when it comes back (Kwon et al., *PagedAttention*, SOSP
2023, section 4.5: recomputation)::

    4 blocks of 4 tokens          A ████ ███·     B ████ ████
    A needs its 8th token's slot: it is there
    B needs a third block: none is free, and B is the last: it goes itself
    A needs a third block: taken from B's

Why from the back: then the first in line is never preempted for the sake of others; it ends, its
blocks become free, and the next one is the first.

What you have: ``self.running`` (in the order of service), ``self.enqueue(request)``,
``self.pool.num_free``, ``self.release(request)`` (gives its blocks and its seat back), and
``plan.preempted``, a list.

What to write: ``make_room`` and ``preempt``.

How it is checked: as continuous-batching is, with pools that are far too small.

    minimal-vllm learn check preemption
    minimal-vllm learn run preemption
"""

from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request


class MyScheduler(Scheduler):
    """A scheduler that preempts in a way of your own."""

    def make_room(self, request: Request, missing: int, plan: Plan) -> bool:
        """Preempt from the back until so many blocks are free; False if ``request`` went itself.

        Who is preempted is listed in ``plan.preempted``.
        """
        raise NotImplementedError(
            "while missing is more than self.pool.num_free: take the last of self.running, preempt "
            "it, note it; if it was the request itself, that is all"
        )

    def preempt(self, request: Request) -> None:
        """Let a request, which is in ``self.running`` no more, wait again.

        It keeps its tokens; nothing of them is computed any more. ``num_preemptions`` counts.
        """
        raise NotImplementedError(
            "release what it has, set its counter to 0, count the preemption, let it wait"
        )
