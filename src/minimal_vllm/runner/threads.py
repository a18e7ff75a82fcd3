"""The number of threads that compute a step on a CPU: one for small steps, all for the others.

OpenMP's threads sleep between two operations, since spinning makes everything many times slower on
cores that have other work to do. To wake one takes some 50 µs, as long as one thread takes to
multiply a vector by a matrix of a million numbers. A step of a small model consists of hundreds of
shorter operations, and takes longer with several threads than with one.

Work is counted in products of two numbers, which are float32 times packed half precision.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

import torch

from minimal_vllm.model.linear import Projection
from minimal_vllm.runner.interface import CachedModel
from minimal_vllm.step.batch import Batch

READING = 8
"""Reading a number of a matrix takes as long as so many products with it."""
ATTENDING = 40
"""Gathering a number of a key or value, and attention to it, take as long as so many products."""
WORTH_WAKING = 30_000_000
"""Work of an operation from which on it is worth waking sleeping threads: about 200 µs."""
WORTH_SHARING = 2_000_000
"""The same for threads that spin."""


class StepThreads:
    """Chooses the number of threads for the parts of a step.

    Args:
        model: the model that computes the steps.
    """

    def __init__(self, model: CachedModel) -> None:
        decoder, self._on_cpu = model.decoder, model.device.type == "cpu"
        sizes = {
            path: _size(each)
            for path, each in decoder.named_modules()
            if isinstance(each, Projection)
        }
        self._head = sizes.pop("lm_head")
        self._matrix = fmean(sizes.values())
        _, num_kv_heads, _, head_dim = model.caches[0].key.shape
        self._numbers_per_key = 2 * num_kv_heads * head_dim
        spins = os.environ.get("OMP_WAIT_POLICY", "passive").lower() == "active"
        self._least = WORTH_SHARING if spins else WORTH_WAKING

    @contextmanager
    def for_layers(self, batch: Batch) -> Iterator[None]:
        """Compute the layers within this context with as many threads as are worth it."""
        product = self._matrix * (READING + len(batch.input_ids))
        attention = ATTENDING * self._numbers_per_key * int(batch.seq_lens.sum())
        with self._for_work(max(product, attention)):
            yield

    @contextmanager
    def for_logits(self, rows: int) -> Iterator[None]:
        """Compute the logits of some rows with as many threads as are worth it; see above."""
        with self._for_work(self._head * (READING + rows)):
            yield

    @contextmanager
    def _for_work(self, work: float) -> Iterator[None]:
        threads = torch.get_num_threads()
        if work >= self._least or threads == 1 or not self._on_cpu:
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _size(projection: Projection) -> int:
    """Return the number of a matrix's entries. The matrix itself may be packed."""
    return projection.in_size * sum(projection.parts.values())
