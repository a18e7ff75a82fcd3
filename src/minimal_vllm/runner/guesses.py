"""Steps in which requests have several places, one after the other: with guesses, or to guess.

All requests decode. The step is like one of as many requests as it has places: each place has the
row of its request, and a position of its own. It samples at all of them. A step with guesses writes
to the table of rows what each request keeps, and a draft model's step writes its guesses there. So
the next step needs no more from the CPU than after any other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.model.eagle import EagleHead
from minimal_vllm.runner.capture import Graph, with_bar
from minimal_vllm.runner.graphs import Capture
from minimal_vllm.runner.inputs import PENDING, InputMemory
from minimal_vllm.runner.kernels.accept import accept
from minimal_vllm.runner.kernels.rows import JUST_SAMPLED, PlaceInputs
from minimal_vllm.runner.shapes import extremes_first, next_size, place_counts
from minimal_vllm.runner.step import GpuStep, LocatedTokens, Outputs
from minimal_vllm.step.batch import IntArray, enumerate_runs


class PlaceSteps:
    """Steps recorded as CUDA graphs by their number of places.

    Args:
        step: the parts of a step.
        capture: recorder of the graphs. None: every step is launched kernel by kernel.
        max_places: maximum number of places in a step.
    """

    behind = False
    """Whether keys are one place behind; see ``begin_step``."""

    def __init__(self, step: GpuStep, capture: Capture | None, max_places: int) -> None:
        self.table = step.table
        self._step = step
        self._capture = capture
        self._max_places = max_places
        self._inputs = InputMemory(
            {
                "order": (max_places, step.table.padding_row),
                "offsets": (max_places, 0),
                "tokens": (max_places, PENDING),
                "counts": (max_places, 0),
            },
            step.model.device,
        )
        self._places = PlaceInputs(
            *(self._inputs[name] for name in ("offsets", "tokens", "counts"))
        )
        self._outputs = step.new_outputs(max_places)
        self._sizes = list(place_counts(max_places))
        self._graphs: dict[int, Graph] = {}
        self._laid_out: tuple[bytes, Mapping[str, IntArray]] = (b"", {})

    def fits(self, num_places: int) -> bool:
        """Return whether a step may have ``num_places`` places."""
        return num_places <= self._max_places

    def compute(
        self, rows: IntArray, starts: IntArray, num_places: IntArray, tokens: Sequence[int]
    ) -> Outputs:
        """Compute and sample at all places.

        Args:
            rows: ``[R]``: row of each request in the table.
            starts: ``[R]``: distance of each request's first place from its last known token.
            num_places: ``[R]``: number of places of each request.
            tokens: the token at each place, ``PENDING``, or ``JUST_SAMPLED``; see ``PlaceInputs``.
        """
        layout = self._lay_out(rows, starts, num_places)
        self._inputs.set({**layout, "tokens": np.array(tokens)})
        size = next_size(self._sizes, len(tokens))
        if self._graphs:
            self._graphs[size].replay()
        else:
            self._compute(size)
        return self._outputs.first(len(tokens))

    def _lay_out(
        self, rows: IntArray, starts: IntArray, num_places: IntArray
    ) -> Mapping[str, IntArray]:
        """Return a step's inputs but for the tokens: often, those of the step before."""
        key = b"".join(each.tobytes() for each in (rows, starts, num_places))
        if key != self._laid_out[0]:
            owner, offset = enumerate_runs(num_places)
            layout = {
                "order": rows[owner],
                "offsets": starts[owner] + offset,
                "counts": count_together(num_places, self._step.attention.max_queries),
            }
            self._laid_out = key, layout
        return self._laid_out[1]

    def finish(
        self,
        order: Tensor,
        located: LocatedTokens,
        hidden: Tensor,
        tokens: Tensor,
    ) -> None:
        """Write to the table of rows what was sampled at each place.

        Args:
            order: ``[N]`` int32: row of each place.
            located: tokens, positions and offsets that the step computed.
            hidden: ``[N, hidden]``: their hidden states.
            tokens: ``[N]`` int64: tokens that it sampled.
        """
        raise NotImplementedError

    # ---- record ---------------------------------------------------------------------------------

    def steps_to_record(self) -> Iterator[Callable[[], None]]:
        """Yield all steps that can be recorded; see ``Graphs.steps_to_record``.

        The inputs are padding until the first step is computed.
        """
        short = self._step.shortened()
        for size in extremes_first(self._sizes):
            yield partial(self._compute, size, short)

    def record(self, *, progress: bool) -> None:
        """Record all sizes, the largest first, because the others fit into its memory."""
        if self._capture is None:
            return
        sizes, title = self._sizes[::-1], "Recording graphs of guesses"
        for size in with_bar(sizes, len(sizes), title, progress=progress):
            self._graphs[size] = self._capture.record(partial(self._compute, size))

    def _compute(self, size: int, short: GpuStep | None = None) -> None:
        """Compute and sample at the first ``size`` places of the inputs.

        Args:
            size: number of places.
            short: step to compute instead, if this is to load and compile kernels only.
        """
        step, outputs = short or self._step, self._outputs.first(size)
        order, places = self._inputs["order"][:size], self._places.first(size)
        located = step.decode_front(order, None, places, behind=self.behind)
        if short:
            located.clear()
        hidden = step.body(located)
        step.sample(order, hidden, outputs, located.sampling)
        self.finish(order, located, hidden, outputs.tokens)


class GuessSteps(PlaceSteps):
    """Steps with guesses, of which the first right ones are kept."""

    def __init__(self, step: GpuStep, capture: Capture | None, max_places: int) -> None:
        super().__init__(step, capture, max_places)
        self._computed = torch.zeros(2, max_places, dtype=torch.int64, device=step.model.device)
        """Token and position of each place."""

    def finish(
        self,
        order: Tensor,
        located: LocatedTokens,
        hidden: Tensor,
        tokens: Tensor,
    ) -> None:
        """Write what each request keeps."""
        del hidden
        self._computed[0, : len(order)] = located.tokens
        self._computed[1, : len(order)] = located.positions
        accept(self.table, order, located.offsets, located.tokens, located.positions, tokens)

    def accept_again(self, count: int) -> None:
        """Write again what is kept of the last step, after some of its ``count`` tokens changed."""
        order, offsets = self._inputs["order"][:count], self._inputs["offsets"][:count]
        tokens, positions = self._computed[:, :count]
        accept(self.table, order, offsets, tokens, positions, self._outputs.tokens[:count])


class DraftSteps(PlaceSteps):
    """Steps of a draft model, which shares the table of rows. Each place guesses what follows."""

    def finish(
        self,
        order: Tensor,
        located: LocatedTokens,
        hidden: Tensor,
        tokens: Tensor,
    ) -> None:
        """Write the guesses at the tokens behind each place, to where the next step reads them."""
        del hidden
        self.table.note_guesses(order, located.offsets, tokens)

    def follow(self, rows: IntArray, num_sampled: IntArray) -> None:
        """Guess what follows the tokens that the step in flight keeps; only the GPU has them.

        All but the last two of them are in the cache. If all guesses hold, the last guess, which is
        the token before the last one, has not been computed. Otherwise it is computed again.

        Args:
            rows: ``[R]``: row of each request, which has guesses in flight.
            num_sampled: ``[R]``: number of tokens that the step in flight samples for it.
        """
        del num_sampled
        starts, num_places = np.full_like(rows, -1), np.full_like(rows, 2)
        self.compute(rows, starts, num_places, [PENDING] * (2 * len(rows)))


class EagleSteps(DraftSteps):
    """Steps of an EAGLE-3 head, whose keys are one place behind; see ``DraftSteps``.

    Args:
        head: the head, which is the network of ``step``.
        step: see ``PlaceSteps``.
        capture: see ``PlaceSteps``.
        max_places: see ``PlaceSteps``.
    """

    behind = True

    def __init__(
        self, head: EagleHead, step: GpuStep, capture: Capture | None, max_places: int
    ) -> None:
        super().__init__(step, capture, max_places)
        self._head = head

    def finish(
        self,
        order: Tensor,
        located: LocatedTokens,
        hidden: Tensor,
        tokens: Tensor,
    ) -> None:
        """Write the guesses; see ``DraftSteps.finish``.

        The head's states become what it reads of the places, unless the model has computed these.
        """
        super().finish(order, located, hidden, tokens)
        if located.own_slots is not None:
            padding = torch.full_like(located.own_slots, -1)
            slots = torch.where(located.offsets >= 0, located.own_slots, padding)
            self._head.note_states(slots, hidden)

    def follow(self, rows: IntArray, num_sampled: IntArray) -> None:
        """Guess what follows the tokens that the step in flight keeps; see ``DraftSteps.follow``.

        The head reads what the model has computed in that step: at each of its places the hidden
        state, together with the token that was sampled there. The places behind a wrong guess are
        wasted. What is written for them is overwritten before it is read.
        """
        tokens = [JUST_SAMPLED] * int(num_sampled.sum())
        self.compute(rows, np.zeros_like(rows), num_sampled, tokens)


def count_together(num_places: IntArray, most: int) -> IntArray:
    """Divide each request's places among programs of attention.

    Args:
        num_places: ``[R]``: number of places of each request.
        most: maximum number of places of a program.

    Returns:
        For each place, the number of places that its program computes from it on, or 0 if it is not
        the first of them.
    """
    owner, offset = enumerate_runs(num_places)
    left = num_places[owner] - offset
    return np.where(offset % most == 0, np.minimum(left, most), 0)
