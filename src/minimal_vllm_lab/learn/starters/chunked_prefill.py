"""Exercise chunked-prefill: let no prompt stall those who are in the middle of an answer.

The idea. A step may compute so many tokens and no more, its *budget*: that bounds how long it
takes. A decoding request wants one token of it, a prompt thousands. If the prompt were served
whole, all others would wait for their next token. So it is cut into chunks of what the others leave
(Agrawal et al., *Sarathi-Serve*, OSDI 2024)::

    budget 8; A and B decode, C has a prompt of 15 tokens
    step      A   B   C
    1         1   1   6      tokens 0-5
    2         1   1   6      tokens 6-11
    3         1   1   3      tokens 12-14: the counter has caught up, and C gets its first token

There is no prefill and no decode here: each request computes ``num_uncomputed_tokens``, or less.

What you have, in ``self``:

    running                                    the requests that run, in the order of service
    num_missing_blocks(request, num_new)      blocks it lacks to compute num_new tokens more
    make_room(request, missing, plan)         preempts from the back of self.running until so many
                                               blocks are free; False if the request went itself
    schedule_tokens(plan, request, num_new)    puts num_new tokens of it into the plan, and gives it
                                               the blocks for them
    request.num_uncomputed_tokens              how far its counter is behind its tokens
    request.awaits_its_end                     it needs no token any more: pass it over

What to write: ``schedule_running``.

How it is checked: as continuous-batching is.

    minimal-vllm learn check chunked-prefill
    minimal-vllm learn run chunked-prefill
"""

from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.step.plan import Plan


class MyScheduler(Scheduler):
    """A scheduler that shares out the budget in a way of your own."""

    def schedule_running(self, plan: Plan, budget: int) -> int:
        """Put tokens of each running request into the plan; what is left of the budget.

        In the order of ``self.running`` each computes as much as it can, but leaves one token of
        the budget to each request behind it. Where blocks are missing, room is made, which makes
        ``self.running`` shorter, from its end. Once a request went itself, nobody is behind it.
        """
        raise NotImplementedError(
            "go through self.running by position, since it may become shorter; num_new is "
            "min(what the request needs, budget - how many are behind it); make room if blocks are "
            "missing; schedule it; take it from the budget"
        )
