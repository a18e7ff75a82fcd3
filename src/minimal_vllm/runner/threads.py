"""Choosing the number of threads for the parts of a step on a CPU; see ``device.threads``.

Work is counted in products of two numbers, which are float32 times packed half precision.
"""

from statistics import fmean

from minimal_vllm.device.threads import OneThread, threads_spin
from minimal_vllm.model.linear import Projection
from minimal_vllm.runner.interface import CachedModel

READING = 8
"""Number of products that take as long as reading one number of a matrix."""
WORTH_WAKING = 30_000_000
"""Minimum work of an operation for waking sleeping threads to pay off: about 200 µs."""
WORTH_SHARING = 2_000_000
"""Minimum work of an operation for sharing it among spinning threads to pay off."""


class StepThreads:
    """Chooses between one thread and all.

    Args:
        model: the model that computes the steps.
    """

    def __init__(self, model: CachedModel) -> None:
        sizes = {
            path: _size(each)
            for path, each in model.decoder.named_modules()
            if isinstance(each, Projection)
        }
        self._head = sizes.pop("lm_head")
        self._matrix = fmean(sizes.values())
        self._least = WORTH_SHARING if threads_spin() else WORTH_WAKING

    def for_layers(self, tokens: int) -> OneThread:
        """Return a context to compute the layers in, for a number of tokens.

        The average product decides.
        """
        return OneThread(self._matrix * (READING + tokens) < self._least)

    def for_logits(self, rows: int) -> OneThread:
        """Return a context to compute a number of rows of logits in."""
        return OneThread(self._head * (READING + rows) < self._least)


def _size(projection: Projection) -> int:
    """Return the number of a matrix's entries. The matrix itself may be packed."""
    return projection.in_size * sum(projection.parts.values())
