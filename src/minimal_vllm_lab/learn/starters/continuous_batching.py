"""Exercise continuous-batching: put the batch together anew at each step.

The idea. One step of the model takes almost as long for one token as for a hundred, since it reads
all weights either way. So requests are computed together. A fixed batch waits for its longest
answer, while seats stand empty. Here the batch is made anew in each step: who is done leaves, who
waits comes in as soon as there is room (Yu et al., *Orca*, OSDI 2022)::

    step      1  2  3  4  5  6  7
    A         ▓  ─  ─  ─  ─  ─  ─          ▓ its prompt    ─ one more token
    B         ▓  ─  ─                      done after step 3 …
    C                  ▓  ─  ─  ─          … so C comes in at step 4

What you have, in ``self``:

    schedule calls      self.schedule_running(plan, budget)   what is left of the budget
    config              max_num_seqs, max_num_batched_tokens, block_size, enable_chunked_prefill
    running             the requests that run, a list
    waiting             those that wait, a list in the order of service
    pool                the blocks; pool.take_evicted() lists those evicted since the last call
    find_cached_prefix(request)               cached blocks that it begins with
    has_room_for(request, cached)             whether all of it fits into the pool now
    admit(request, cached)                    gives it a seat, and these cached blocks
    schedule_tokens(plan, request, num_new, cached)
                                               puts num_new tokens of it into the plan, and gives it
                                               the blocks for them

What to write: ``schedule`` and ``admit_waiting``.

How it is checked: random requests come, run and are aborted, on a fake model that notices each
wrong block; and each plan must be the engine's.

    minimal-vllm learn check continuous-batching
    minimal-vllm learn run continuous-batching
"""

from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.step.plan import Plan


class MyScheduler(Scheduler):
    """A scheduler that lets requests in in a way of your own."""

    def schedule(self) -> Plan:
        """Choose what the next step computes: running requests first, then new ones.

        The running ones get what they need of ``config.max_num_batched_tokens``. If none of them
        had to be preempted (``plan.preempted``), waiting ones are admitted with what is left. The
        plan ends by listing what the pool has evicted meanwhile, in ``plan.evicted``.
        """
        raise NotImplementedError(
            "make a Plan(), schedule the running, admit the waiting unless plan.preempted, set "
            "plan.evicted, and return the plan"
        )

    def admit_waiting(self, plan: Plan, budget: int) -> None:
        """Admit requests, in order, while there is a seat, budget and room; at most ``budget``.

        A request computes all of its tokens that are not cached, or as many as the budget allows
        if chunks are allowed (``config.enable_chunked_prefill``); if not, it waits until all fit.
        Nobody overtakes: where the first in the queue has no room, all wait. Who is admitted is
        also listed in ``plan.admitted``.
        """
        raise NotImplementedError(
            "while somebody waits, and there is a seat and budget: see what is cached; stop if it "
            "does not fit; take it out, admit it, note it in plan.admitted, schedule it, take its "
            "tokens from the budget"
        )
