"""Exercise chunked-prefill: split long prompts so that decodes never stall.

The idea. The number of tokens that a step may compute, its *budget*, bounds the time that it takes.
A request that decodes needs one token of the budget, a prompt needs thousands. If a prompt were
computed at once, all other requests would wait for their next token. So it is split into chunks
that fit into the rest of the budget (Agrawal et al., *Sarathi-Serve*, OSDI 2024)::

    budget 8; A and B decode, C has a prompt of 15 tokens
    step      A   B   C
    1         1   1   6      tokens 0-5
    2         1   1   6      tokens 6-11
    3         1   1   3      tokens 12-14: the counter has caught up, and C gets its first token

The code does not distinguish prefill from decode: each request computes ``num_uncomputed_tokens``
tokens, or fewer.

What you have, in ``self``:

    running                                    the running requests, in order of service
    num_missing_blocks(request, num_new)       blocks it lacks to compute num_new more tokens
    make_room(request, missing, plan)          removes requests from the end of self.running until
                                               that many blocks are free; False if it had to remove
                                               the request itself
    schedule_tokens(plan, request, num_new)    adds num_new tokens of the request to the plan, and
                                               allocates their blocks
    request.num_uncomputed_tokens              number of its tokens that are not computed yet
    request.awaits_its_end                     it needs no more tokens: skip it

What to write: ``schedule_running``.

How it is checked: like continuous-batching.

    minimal-vllm learn check chunked-prefill
    minimal-vllm learn run chunked-prefill
"""

from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.step.plan import Plan


class MyScheduler(Scheduler):
    """A scheduler that divides the budget in a way of your own."""

    def schedule_running(self, plan: Plan, budget: int) -> int:
        """Add tokens of each running request to the plan, and return the rest of the budget.

        In the order of ``self.running``, each request computes as many tokens as it can, but leaves
        one token of the budget for each request after it. If it lacks blocks, ``make_room`` finds
        some. A request that had to be removed itself was the last one.
        """
        raise NotImplementedError
