"""Exercise continuous-batching: choose a new batch for every step.

The idea. A step takes almost as long for one token as for a hundred, because it reads all weights
either way. So requests are computed together. A fixed batch runs until its longest answer is
complete, while finished requests leave their seats empty. Here the batch is chosen anew for every
step: finished requests leave, and waiting ones join as soon as there is room (Yu et al., *Orca*,
OSDI 2022)::

    step      1  2  3  4  5  6  7
    A         ▓  ─  ─  ─  ─  ─  ─          ▓ its prompt    ─ one more token
    B         ▓  ─  ─                      finishes in step 3 …
    C                  ▓  ─  ─  ─          … so C joins in step 4

What you have, in ``self``:

    schedule_running(plan, budget)             schedules the running requests; returns the rest of
                                               the budget
    config              max_num_seqs, max_num_batched_tokens, block_size
    running             list of the running requests
    waiting             list of the waiting requests, in order of service
    pool                the block pool; pool.take_evicted() returns the blocks that were evicted
                        since the last call
    find_cached_prefix(request)                blocks in which the beginning of its tokens is
                                               already computed (chapter 6); often an empty list
    has_room_for(request, cached)              whether all of its tokens fit into the pool now
    admit(request, cached)                     makes it a running request that holds these cached
                                               blocks
    schedule_tokens(plan, request, num_new, cached)
                                               adds num_new tokens of the request to the plan, and
                                               allocates their blocks

What to write: ``schedule`` and ``admit_waiting``.

How it is checked: random requests arrive, run and are aborted, on a fake model that detects every
wrong block. Each plan must equal the engine's. Prompts are not split (that is chapter 8): ``learn
run`` switches chunked prefill off.

    minimal-vllm learn check continuous-batching
    minimal-vllm learn run continuous-batching
"""

from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.step.plan import Plan


class MyScheduler(Scheduler):
    """A scheduler that admits requests in a way of your own."""

    def schedule(self) -> Plan:
        """Choose the tokens that the next step computes: running requests first, then new ones.

        The running requests take what they need of ``config.max_num_batched_tokens``. If blocks
        ran out, some of them had to give theirs up, and are in ``plan.preempted``; otherwise
        waiting requests are admitted with the rest. At the end, the plan lists the blocks that the
        pool has evicted, in ``plan.evicted``.
        """
        raise NotImplementedError

    def admit_waiting(self, plan: Plan, budget: int) -> None:
        """Admit waiting requests in order, while seats, budget and blocks are left.

        A request computes all of its tokens that are not cached, and waits until they fit into the
        budget. No request overtakes another: if there is no room for the first one, all wait.
        Admitted requests are added to ``plan.admitted``.

        Args:
            plan: the plan to add to.
            budget: maximum number of tokens to add.
        """
        raise NotImplementedError
