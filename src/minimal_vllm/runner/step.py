"""One step on a GPU, in three parts: front, body and head. ``TritonStep`` is its attention.

Every step has these parts, in this order, whether a CUDA graph repeats its launches or the CPU
launches its kernels one by one:

- The *front* finds the tokens, their positions and their slots, and plans attention. A steady
  decode step finds all of it in the table of rows; other steps are told by the CPU.
- The *body* is the network, from tokens to hidden states.
- The *head* computes logits, samples, and notes the tokens in the table of rows, where the next
  step finds them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minimal_vllm.attention.kernels.prefill import PrefillWork
from minimal_vllm.attention.kernels.shared import SharedWork
from minimal_vllm.attention.triton_backend import TritonAttention, TritonStep
from minimal_vllm.device.transfer import send
from minimal_vllm.runner.interface import CachedModel
from minimal_vllm.runner.kernels.rows import begin_step, end_step, place_tokens
from minimal_vllm.runner.table import RowTable
from minimal_vllm.sampling.kernels.sample import SamplingInputs, sample_rows
from minimal_vllm.step.batch import Batch


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where a step leaves its results; a graph does so until the next step."""

    logits: Tensor
    """``[N, V]``"""
    tokens: Tensor
    """``[N]`` int64."""

    def first(self, count: int) -> "Outputs":
        """Return the outputs of the first ``count`` requests."""
        return Outputs(self.logits[:count], self.tokens[:count])


@dataclass(frozen=True, slots=True)
class Placed:
    """The tokens of a step, and attention that knows where they are."""

    tokens: Tensor
    """``[T]`` int64."""
    positions: Tensor
    """``[T]`` int64: their positions in their requests."""
    attend: TritonStep
    sampling: SamplingInputs | None = None
    """How to sample the tokens that follow, if the front has looked it up already."""


@dataclass(frozen=True, slots=True)
class MixedInputs:
    """Numbers that the CPU sends for a step with prompts; padded to the sizes of its shape."""

    tokens: Tensor
    """``[T]`` int32; negative: the token that its request sampled last."""
    positions: Tensor
    """``[T]`` int32: positions in their requests."""
    rows: Tensor
    """``[T]`` int32: rows of their requests in the table."""
    decode_tokens: Tensor
    """``[D]`` int32: which of the tokens decode."""
    seq_lens: Tensor
    """``[D]`` int32: number of tokens in the cache of each decoding request; 0 for padding."""
    decode_rows: Tensor
    """``[D]`` int32: rows of the decoding requests in the table."""
    prefill: dict[int | None, PrefillWork]
    """Work on the prompts, for each window."""


class GpuStep:
    """The parts of a step.

    Args:
        model: a decoder on a GPU, built of Triton modules.
        attention: attention by our own kernels.
        table: the rows of the running requests.
    """

    def __init__(self, model: CachedModel, attention: TritonAttention, table: RowTable) -> None:
        self.model = model
        self.attention = attention
        self.table = table

    def run(
        self,
        placed: Placed,
        order: Tensor,
        outputs: Outputs,
        *,
        last: Tensor | None = None,
        keep_all: bool = False,
    ) -> Tensor:
        """Run body and head behind a front.

        Args:
            placed: from a front.
            order: ``[N]`` int32: rows of the requests that sample.
            outputs: written.
            last: ``[N]`` int64: indices of the tokens that they sample from. Default: all tokens.
            keep_all: whether the hidden states of all tokens are computed, not only of ``last``.

        Returns:
            The hidden states that were computed.
        """
        hidden = self.body(placed, None if keep_all else last)
        self.head(order, hidden[last] if keep_all else hidden, outputs, placed.sampling)
        return hidden

    # ---- front ----------------------------------------------------------------------------------

    def decode_front(self, order: Tensor, shared: SharedWork | None) -> Placed:
        """Find the next token of each request in the table.

        Args:
            order: ``[N]`` int32: rows of the requests, in the order of the batch.
            shared: prefixes that several of them share.
        """
        rows = begin_step(self.table, order, self.model.block_size)
        decode = self.attention.plan_decode(
            token=torch.arange(len(order), dtype=torch.int32, device=order.device),
            seq_lens=rows.seq_lens,
            table_row=order,
            block_tables=self.table.block_tables,
            shared=shared,
        )
        attend = TritonStep(slots=rows.slots, decode=decode, shared=shared)
        return Placed(rows.tokens, rows.positions, attend, rows.sampling)

    def mixed_front(self, inputs: MixedInputs, shared: SharedWork | None) -> Placed:
        """Find slots for the tokens that the CPU names, and those tokens that only the table has.

        Args:
            inputs: the numbers that the CPU sent.
            shared: prefixes that several of the decoding requests share.
        """
        placed = place_tokens(
            self.table, inputs.tokens, inputs.positions, inputs.rows, self.model.block_size
        )
        decode = self.attention.plan_decode(
            token=inputs.decode_tokens,
            seq_lens=inputs.seq_lens,
            table_row=inputs.decode_rows,
            block_tables=self.table.block_tables,
            shared=shared,
        )
        attend = TritonStep(
            slots=placed.slots, decode=decode, shared=shared, prefill=dict(inputs.prefill)
        )
        return Placed(placed.tokens, placed.positions, attend)

    def batch_front(self, batch: Batch) -> Placed:
        """Send a whole batch of any shape, for a step that has no graph.

        Pending tokens are taken from the table. Long fresh prompts may go to the library's kernel,
        which a graph can't do.
        """
        device = self.model.device
        tokens = send(batch.input_ids, device)
        if len(batch.pending):
            index = send(batch.query_starts[batch.pending + 1] - 1, device)
            tokens[index] = self.table.last_tokens(send(batch.rows[batch.pending], device))
        return Placed(tokens, send(batch.positions, device), self.attention.plan(batch))

    # ---- body -----------------------------------------------------------------------------------

    def body(self, placed: Placed, wanted: Tensor | None = None) -> Tensor:
        """Compute hidden states; ``wanted`` is as in ``Decoder.forward``."""
        return self.model.decoder.forward(
            placed.tokens, placed.positions, self.model.caches, placed.attend, wanted
        )

    # ---- head -----------------------------------------------------------------------------------

    def head(
        self,
        order: Tensor,
        hidden: Tensor,
        outputs: Outputs,
        sampling: SamplingInputs | None = None,
    ) -> None:
        """Sample the next tokens of some requests, and note them in the table.

        Args:
            order: ``[N]`` int32: rows of the requests.
            hidden: ``[N, hidden]``: their last hidden states.
            outputs: written.
            sampling: how to sample. Default: as the table says.
        """
        if not len(order):
            return
        if sampling is None:
            sampling = begin_step(self.table, order, self.model.block_size).sampling
        logits = self.model.decoder.logits(hidden, out=outputs.logits)
        sample_rows(logits, sampling, outputs.tokens)
        end_step(self.table, order, outputs.tokens)

    def new_outputs(self, count: int) -> Outputs:
        """Allocate the outputs of ``count`` requests."""
        decoder = self.model.decoder
        return Outputs(
            torch.empty(count, decoder.vocab_size, dtype=decoder.dtype, device=self.model.device),
            torch.empty(count, dtype=torch.int64, device=self.model.device),
        )
