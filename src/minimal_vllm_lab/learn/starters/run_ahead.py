"""Exercise run-ahead: launch the next step before the last one's tokens are there.

The idea. The CPU plans a step, the GPU computes it, and each waits for the other in turn. But a
plan needs no tokens: it counts them. So the next step can be planned, and launched, while the GPU
is at work; only then are the older one's tokens waited for, and made into text. When the GPU has
done with a step, it finds the next one already there::

    one after the other    CPU  plan 0 ········ text 0, plan 1 ········ text 1, plan 2
                           GPU        ▓step 0▓▓               ▓step 1▓▓

    ahead                  CPU  plan 0, plan 1 ·· text 0, plan 2 ·· text 1, plan 3 ··
                           GPU        ▓step 0▓▓▓▓▓▓step 1▓▓▓▓▓▓▓▓▓▓▓step 2▓▓▓▓▓▓▓▓▓▓▓

What you have, in ``self``:

    _runs_ahead                       whether the engine is to do so at all; on a CPU it is not
    _in_flight                        the steps that were launched and not waited for, a sequence
    _launch_next()                    plans a step and launches it, unless there is nothing to
                                      compute; outputs, if it could not be launched
    _finish_oldest()                  waits for the oldest step in flight; the outputs of its tokens
    scheduler.needs_pending_tokens()  whether what comes next depends on tokens that nobody knows
                                      yet: a request with a penalty, say, must see them first

What to write: ``step``.

How it is checked: a pretended GPU writes down what is launched and waited for in each call.
Requests come at random, end unforeseen, and some have penalties.

    minimal-vllm learn check run-ahead
"""

from minimal_vllm.engine.engine import Engine
from minimal_vllm.outputs import RequestOutput


class MyEngine(Engine):
    """An engine that lets nobody wait in a way of your own."""

    def step(self) -> list[RequestOutput]:
        """Compute some tokens of some requests; the outputs of the step that was waited for.

        At least one step is in flight then, if there is anything to compute; one more if the
        engine runs ahead and may. After that the oldest is waited for. So between two calls one
        step is in flight, or none.
        """
        raise NotImplementedError(
            "if nothing is in flight, launch a step; if the engine runs ahead, something is in "
            "flight and no pending token is needed, launch another; if anything is in flight, "
            "finish the oldest; return all outputs"
        )
