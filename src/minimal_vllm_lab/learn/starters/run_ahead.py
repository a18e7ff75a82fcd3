"""Exercise run-ahead: launch a step before the previous one's tokens arrive.

The idea. The CPU plans a step, the GPU computes it, and each of them waits for the other in turn.
But planning a step only needs the number of tokens, not the tokens themselves. So the next step can
be planned and launched while the GPU is busy. Only then does the CPU wait for the tokens of the
older step, and turn them into text. When the GPU finishes a step, the next one is already queued::

    one after the other    CPU  plan 0 ········ text 0, plan 1 ········ text 1, plan 2
                           GPU        ▓step 0▓▓               ▓step 1▓▓

    ahead                  CPU  plan 0, plan 1 ·· text 0, plan 2 ·· text 1, plan 3 ··
                           GPU        ▓step 0▓▓▓▓▓▓step 1▓▓▓▓▓▓▓▓▓▓▓step 2▓▓▓▓▓▓▓▓▓▓▓

What you have, in ``self``:

    _runs_ahead                       whether the engine runs ahead; it does not on a CPU
    _in_flight                        sequence of the steps that are launched but not waited for
    _launch_next()                    plans and launches a step, if there are tokens to compute;
                                      returns outputs if the step could not be launched
    _finish_oldest()                  waits for the oldest step in flight; returns its outputs
    scheduler.needs_pending_tokens()  whether the next step depends on tokens that are still being
                                      computed: a request with a penalty, for example, needs them

What to write: ``step``.

How it is checked: a fake GPU records the launches and waits of each call. Requests arrive at
random, finish unexpectedly, and some of them have penalties.

    minimal-vllm learn check run-ahead
"""

from minimal_vllm.engine.engine import Engine
from minimal_vllm.outputs import RequestOutput


class MyEngine(Engine):
    """An engine whose ``step`` you write, to keep CPU and GPU busy at the same time."""

    def step(self) -> list[RequestOutput]:
        """Launch and finish steps, and return the outputs of the step that was waited for.

        Each call waits for one step, unless there is nothing to compute. If the engine runs ahead,
        the GPU has the next step while this call waits, except when that step depends on pending
        tokens. Between two calls at most one step is in flight. No output may be lost.
        """
        raise NotImplementedError
