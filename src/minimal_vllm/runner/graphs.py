"""Steps recorded as CUDA graphs, one per shape.

A steady decode step is one graph. It needs no input from the CPU: the order of the batch is already
on the GPU, and everything else is in the table of rows. While requests arrive one by one, nearly
every step contains part of a prompt. Such a step is two graphs: front and body for its number of
tokens, and the head for its number of requests that sample. Grids have the maximum size for the
shape; programs that find no work end at once.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product, zip_longest
from typing import Protocol

import numpy as np
import torch

from minimal_vllm.attention.kernels.shared import SharedWork
from minimal_vllm.device.transfer import send
from minimal_vllm.runner.capture import Graph, with_bar
from minimal_vllm.runner.inputs import StepInputs
from minimal_vllm.runner.shapes import (
    FEW_DECODES,
    MAX_PROMPTS,
    StepShape,
    batch_sizes,
    extremes_first,
    next_size,
    token_counts,
)
from minimal_vllm.runner.step import GpuStep, Outputs
from minimal_vllm.step.batch import Batch
from minimal_vllm.step.plan import Plan, is_decode
from minimal_vllm.step.request import Request
from minimal_vllm.step.shared_prefix import find_shared_prefixes


class Capture(Protocol):
    """Recorder of GPU work; see ``GraphCapture``."""

    def record(self, compute: Callable[[], None], /) -> Graph:
        """Return the work that ``compute`` launches as a graph."""
        ...


class SharedPrefixes:
    """Prefixes that decoding requests share, in memory that graphs read.

    Args:
        step: the step whose attention reads them.
        max_num_seqs: maximum number of requests in a step.
        enabled: whether to look for shared prefixes at all.
    """

    def __init__(self, step: GpuStep, max_num_seqs: int, *, enabled: bool) -> None:
        self.enabled = enabled
        self._attention = step.attention
        self._block_size = step.model.block_size
        self._windows = step.model.groups.windows
        self._work = step.attention.new_shared_work(max_num_seqs)
        self._is_clean = True

    def note(self, requests: Sequence[Request], size: int) -> bool:
        """Write which requests share prefixes, for a step of ``size``; return whether any do."""
        prefixes = (
            find_shared_prefixes(requests, self._block_size, self._windows) if self.enabled else []
        )
        if prefixes or not self._is_clean:
            self._is_clean = False  # in case the next line is interrupted
            self._attention.fill_shared_work(self._work, prefixes, size)
            self._is_clean = not prefixes
        return bool(prefixes)

    def find(self, requests: Sequence[Request]) -> SharedWork | None:
        """Return the prefixes that these requests share, for a step without a graph."""
        return self.work(len(requests)) if self.note(requests, len(requests)) else None

    def work(self, size: int) -> SharedWork:
        """Return the shared prefixes for a step of ``size`` requests, as attention reads them."""
        return self._attention.part_of_shared_work(self._work, size)


def decoding_requests(plan: Plan) -> list[Request]:
    """Return the requests that decode in a step, in the order of its batch."""
    return [entry.request for entry in plan.scheduled if is_decode(entry.num_new)]


class Graphs:
    """CUDA graphs of steps, by shape: records and replays them.

    Args:
        step: the parts of a step.
        capture: recorder of the graphs.
        max_num_seqs: maximum number of requests in a step.
        max_tokens: maximum number of tokens in a recorded step.
        cascade: whether a prefix that several requests share is read once for all of them.

    Attributes:
        hidden: ``[max_tokens, hidden]``: final hidden states of the last step with prompts, in the
            order of its batch.
    """

    def __init__(
        self,
        step: GpuStep,
        capture: Capture,
        *,
        max_num_seqs: int,
        max_tokens: int,
        cascade: bool,
    ) -> None:
        self._step = step
        self._capture = capture
        device = step.model.device
        self.shared = SharedPrefixes(step, max_num_seqs, enabled=cascade)
        self._inputs = StepInputs(step.attention, step.table, max_tokens, max_num_seqs, device)
        self._order = torch.full(
            (max_num_seqs,), step.table.padding_row, dtype=torch.int32, device=device
        )
        self.hidden = torch.zeros(
            max_tokens,
            step.model.decoder.hidden_size,
            dtype=step.model.decoder.dtype,
            device=device,
        )
        self._outputs = step.new_outputs(max_num_seqs)
        self._batch_sizes = list(batch_sizes(max_num_seqs))
        self._token_counts = list(token_counts(max_tokens))
        self._decode_counts = sorted({min(FEW_DECODES, max_num_seqs), max_num_seqs})
        self._last_order: Sequence[Request] = ()
        self._last_shares = False
        self._bodies: dict[StepShape, Graph] = {}
        self._heads: dict[int, Graph] = {}

    # ---- replay ---------------------------------------------------------------------------------

    def decode(self, requests: Sequence[Request]) -> Outputs:
        """Compute the next token of each request. All must be decoding and in the table of rows."""
        size = next_size(self._batch_sizes, len(requests))
        if requests != self._last_order:
            self._send_order(requests, size)
        self._body(StepShape(size, size, is_steady=True, shares=self._last_shares)).replay()
        return self._outputs.first(len(requests))

    def _send_order(self, requests: Sequence[Request], size: int) -> None:
        """Send the order of the batch, as rows of the table, and the prefixes that are shared."""
        self._last_order = requests
        order = np.full(size, self._step.table.padding_row, dtype=np.int32)
        order[: len(requests)] = [request.row for request in requests]
        self._order[:size].copy_(send(order, self._order.device))
        self._last_shares = self.shared.note(requests, size)

    def forget_order(self) -> None:
        """Forget the order of the last batch, so that the next decode step sends it again.

        After another kind of step, the requests may have moved or share other prefixes.
        """
        self._last_order = ()

    def fits(self, batch: Batch) -> bool:
        """Return whether there is a graph for a step with this batch."""
        return len(batch.input_ids) <= self._token_counts[-1] and len(batch.prefills) <= MAX_PROMPTS

    def mixed(self, plan: Plan, batch: Batch) -> Outputs:
        """Compute a step with prompts that fits. All its requests must be in the table of rows."""
        self._inputs.set(batch)
        decoding = decoding_requests(plan)
        num_tokens = next_size(self._token_counts, len(batch.input_ids))
        num_decodes = next_size(self._decode_counts, len(decoding))
        shape = StepShape(num_tokens, min(num_decodes, num_tokens))
        self.shared.note(decoding, shape.num_decodes)
        self._body(shape).replay()
        if batch.sampling:
            self._head(next_size(self._batch_sizes, len(batch.sampling))).replay()
        return self._outputs.first(len(batch.sampling))

    # ---- record ---------------------------------------------------------------------------------

    def steps_to_record(self) -> Iterator[Callable[[], None]]:
        """Yield all steps that can be recorded, to be run once beforehand without our own kernels.

        So all that libraries launch is loaded before it is recorded. The steps have no more layers
        than needed for that. The largest and the smallest of each kind come first: together they
        need almost all of our kernels, which can then be compiled while the others run.
        """
        sizes = extremes_first(self._batch_sizes)
        steady = [
            StepShape(size, size, is_steady=True, shares=shares)
            for size, shares in product(sizes, {False, self.shared.enabled})
        ]
        short = self._step.shortened()
        kinds = (
            [
                partial(self._mixed_body, shape, short)
                for shape in extremes_first(self._mixed_shapes()[::-1])
            ],
            [partial(self._mixed_head, size) for size in sizes],
            [partial(self._steady, shape, short) for shape in steady],
        )
        for steps in zip_longest(*kinds):
            yield from filter(None, steps)

    def record(self, *, progress: bool) -> None:
        """Record all shapes, but for steady steps with shared prefixes."""
        self.record_largest()
        total = len(self._mixed_shapes()) + 2 * len(self._batch_sizes)
        for _ in with_bar(self.recordings(), total, "Recording graphs", progress=progress):
            pass

    def record_largest(self) -> None:
        """Record the largest step of each kind, because the others fit into its memory."""
        self._body(self._mixed_shapes()[0])
        most = self._batch_sizes[-1]
        self._head(most)
        self._body(StepShape(most, most, is_steady=True))

    def recordings(self) -> Iterator[None]:
        """Record the others one by one, the smallest first, since they are needed first.

        Steady steps with shared prefixes are recorded when they are needed, and so is any other
        that is needed earlier.
        """
        sizes = self._batch_sizes
        kinds = (
            [partial(self._body, StepShape(size, size, is_steady=True)) for size in sizes],
            [partial(self._head, size) for size in sizes],
            [partial(self._body, shape) for shape in self._mixed_shapes()[::-1]],
        )
        for recordings in zip_longest(*kinds):
            for record in filter(None, recordings):
                record()
                yield

    def _mixed_shapes(self) -> list[StepShape]:
        """Return the shapes of steps with prompts, the largest first."""
        counts = product(self._token_counts, self._decode_counts)
        shapes = {StepShape(tokens, min(decodes, tokens)) for tokens, decodes in counts}
        return sorted(shapes, key=lambda each: (each.num_tokens, each.num_decodes), reverse=True)

    def _body(self, shape: StepShape) -> Graph:
        if shape not in self._bodies:
            compute = self._steady if shape.is_steady else self._mixed_body
            self._bodies[shape] = self._capture.record(partial(compute, shape))
        return self._bodies[shape]

    def _head(self, count: int) -> Graph:
        if count not in self._heads:
            self._heads[count] = self._capture.record(partial(self._mixed_head, count))
        return self._heads[count]

    # ---- what is recorded -----------------------------------------------------------------------

    def _steady(self, shape: StepShape, short: GpuStep | None = None) -> None:
        """Compute and sample the next tokens of the rows in ``_order``.

        Args:
            shape: shape of the step.
            short: step to compute instead, if this is to load and compile kernels only.
        """
        step, order = short or self._step, self._order[: shape.num_decodes]
        shared = self.shared.work(shape.num_decodes) if shape.shares else None
        located = step.decode_front(order, shared)
        if short:
            located.clear()
        step.run(located, order, self._outputs.first(shape.num_decodes))

    def _mixed_body(self, shape: StepShape, short: GpuStep | None = None) -> None:
        """Compute the hidden states of all input tokens; arguments are those of ``_steady``."""
        step = short or self._step
        shared = self.shared.work(shape.num_decodes) if self.shared.enabled else None
        located = step.mixed_front(self._inputs.of_shape(shape), shared)
        if short:
            located.clear()
        self.hidden[: shape.num_tokens] = step.body(located)

    def _mixed_head(self, count: int) -> None:
        """Sample for the first ``count`` input requests that sample."""
        hidden = self.hidden.index_select(0, self._inputs.last_tokens(count))
        order = self._inputs.sampling_order(count)
        self._step.head(order, hidden, self._outputs.first(count))
