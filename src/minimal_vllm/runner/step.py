"""One step on a GPU, in three parts: front, body and head. ``TritonStep`` is its attention.

Every step has these parts in this order, whether it is replayed as a CUDA graph or launched kernel
by kernel:

- The *front* looks up tokens, positions and cache slots, and plans attention. A steady decode step
  reads all of this from the table of rows; other steps get it from the CPU.
- The *body* is the network, from tokens to hidden states.
- The *head* computes logits, samples, and writes the tokens to the table of rows, where the next
  step reads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from minimal_vllm.attention.kernels.prefill import PrefillWork
from minimal_vllm.attention.kernels.shared import SharedWork
from minimal_vllm.attention.triton_backend import TritonAttention, TritonStep
from minimal_vllm.device.transfer import send
from minimal_vllm.runner.interface import CachedModel
from minimal_vllm.runner.kernels.rows import PlaceInputs, begin_step, end_step, locate_tokens
from minimal_vllm.runner.shortened import shortened
from minimal_vllm.runner.table import RowTable
from minimal_vllm.sampling.kernels.sample import SamplingInputs, sample_rows
from minimal_vllm.step.batch import Batch


@dataclass(frozen=True, slots=True)
class Outputs:
    """Memory for a step's results. With CUDA graphs, the next step overwrites it."""

    logits: Tensor
    """``[N, V]``: logits, in the model's dtype."""
    tokens: Tensor
    """``[N]`` int64: sampled tokens."""

    def first(self, count: int) -> "Outputs":
        """Return the outputs of the first ``count`` requests."""
        return Outputs(self.logits[:count], self.tokens[:count])


@dataclass(frozen=True, slots=True)
class LocatedTokens:
    """Tokens of a step, their positions, and the step's attention."""

    tokens: Tensor
    """``[T]`` int64: token ids."""
    positions: Tensor
    """``[T]`` int64: position of each token in its request."""
    attend: list[TritonStep]
    """The step's attention for each layer; it knows the tokens' cache slots."""
    sampling: SamplingInputs | None = None
    """Inputs of the sampler, if the front has already looked them up."""
    own_slots: Tensor | None = None
    """``[T]`` int64: slots of the tokens themselves, if the others are of the tokens before."""
    offsets: Tensor = field(default_factory=partial(torch.empty, 0))
    """``[T]`` int32: distance of each place from its request's last token; see ``RowInputs``."""

    def clear(self) -> None:
        """Fill in what PyTorch looks up, if no kernel of ours has written it: all is padding."""
        self.tokens.zero_()
        self.offsets.fill_(-1)
        for slots in (self.own_slots, *(each.slots for each in self.attend)):
            if slots is not None:
                slots.fill_(-1)


@dataclass(frozen=True, slots=True)
class MixedInputs:
    """Numbers that the CPU sends for a step with prompts, padded to the sizes of its shape."""

    tokens: Tensor
    """``[T]`` int32: token ids. Negative: the token that the request sampled last."""
    positions: Tensor
    """``[T]`` int32: position of each token in its request."""
    rows: Tensor
    """``[T]`` int32: row of each token's request in the table."""
    decode_tokens: Tensor
    """``[D]`` int32: index of each decoding request's token."""
    seq_lens: Tensor
    """``[D]`` int32: number of cached tokens of each decoding request; 0 for padding."""
    decode_rows: Tensor
    """``[D]`` int32: rows of the decoding requests in the table."""
    prefill: dict[int | None, PrefillWork]
    """Attention work on the prompts, by the layers' sliding window."""


class GpuStep:
    """Front, body and head of a step on a GPU.

    Args:
        model: a model on a GPU, built from Triton modules.
        attention: attention implemented with our own kernels.
        table: the table of running requests.
    """

    def __init__(self, model: CachedModel, attention: TritonAttention, table: RowTable) -> None:
        self.model = model
        self.attention = attention
        self.table = table

    def shortened(self) -> "GpuStep":
        """Return a step that launches the same kernels, in no more layers than needed for that."""
        return GpuStep(shortened(self.model), self.attention, self.table)

    def run(
        self,
        located: LocatedTokens,
        order: Tensor,
        outputs: Outputs,
        *,
        last: Tensor | None = None,
        keep_all: bool = False,
    ) -> Tensor:
        """Run the body and the head of a step whose front has run.

        Args:
            located: tokens and attention, from a front.
            order: ``[N]`` int32: rows of the requests that sample.
            outputs: memory that logits and tokens are written to.
            last: ``[N]`` int64: index of the token that each request samples from. Default: all
                tokens.
            keep_all: whether to compute the hidden states of all tokens, not only of ``last``.

        Returns:
            The hidden states that were computed.
        """
        hidden = self.body(located, None if keep_all else last)
        self.head(order, hidden[last] if keep_all else hidden, outputs, located.sampling)
        return hidden

    # ---- front ----------------------------------------------------------------------------------

    def decode_front(
        self,
        order: Tensor,
        shared: SharedWork | None,
        places: PlaceInputs | None = None,
        *,
        behind: bool = False,
    ) -> LocatedTokens:
        """Look up each row's token in the table, and plan attention for it.

        Args:
            order: ``[N]`` int32: rows of the requests, in the order of the batch.
            shared: prefixes that several of the requests share; none together with places.
            places: where each row stands. Default: at the last token of its request.
            behind: whether keys are one place behind; see ``begin_step``.
        """
        rows = begin_step(self.table, order, self.model.block_size, places, behind=behind)
        decode = self.attention.plan_decode(
            token=None,
            seq_lens=rows.seq_lens,
            table_row=order,
            block_tables=self.table.block_tables[0],
            shared=shared,
            counts=None if places is None else places.counts,
        )
        attend = TritonStep(slots=rows.slots[0], decode=decode, shared=shared)
        by_layer = self._by_layer(attend, rows.slots, self.table.block_tables)
        own_slots = rows.own_slots if behind else None
        return LocatedTokens(
            rows.tokens, rows.positions, by_layer, rows.sampling, own_slots, rows.offsets
        )

    def mixed_front(self, inputs: MixedInputs, shared: SharedWork | None) -> LocatedTokens:
        """Look up slots, and the tokens that only the table has, and plan attention.

        Args:
            inputs: numbers that the CPU sent.
            shared: prefixes that several of the decoding requests share.
        """
        located = locate_tokens(
            self.table, inputs.tokens, inputs.positions, inputs.rows, self.model.block_size
        )
        decode = self.attention.plan_decode(
            token=inputs.decode_tokens,
            seq_lens=inputs.seq_lens,
            table_row=inputs.decode_rows,
            block_tables=self.table.block_tables[0],
            shared=shared,
        )
        attend = TritonStep(
            slots=located.slots[0], decode=decode, shared=shared, prefill=dict(inputs.prefill)
        )
        by_layer = self._by_layer(attend, located.slots, self.table.block_tables)
        return LocatedTokens(located.tokens, located.positions, by_layer)

    def batch_front(
        self, batches: Sequence[Batch], shared: SharedWork | None = None
    ) -> LocatedTokens:
        """Send a whole batch of any shape, for a step that has no graph.

        Pending tokens are taken from the table. Unlike in a graph, cuDNN's kernel may compute long
        new prompts.

        Args:
            batches: the batch of each group of layers.
            shared: prefixes that several of the decoding requests share.
        """
        device, batch = self.model.device, batches[0]
        tokens = send(batch.input_ids, device)
        if len(batch.pending):
            index = send(batch.query_starts[batch.pending + 1] - 1, device)
            tokens[index] = self.table.last_tokens(send(batch.rows[batch.pending], device))
        by_layer = self._by_layer(
            self.attention.plan(batch, shared),
            [send(each.slot_mapping, device) for each in batches],
            [send(each.block_tables, device) for each in batches],
        )
        return LocatedTokens(tokens, send(batch.positions, device), by_layer)

    def _by_layer(
        self, attend: TritonStep, slots: Sequence[Tensor] | Tensor, block_tables: Sequence[Tensor]
    ) -> list[TritonStep]:
        """Return the attention of each layer, given that of the first group.

        Args:
            attend: attention on the first group's blocks.
            slots: each group's cache slots, ``[T]`` int64.
            block_tables: each group's block tables, ``[rows, max blocks]`` int32.
        """
        others = zip(slots[1:], block_tables[1:], strict=True)
        by_group = [attend, *(attend.on_blocks(*blocks) for blocks in others)]
        return self.model.groups.by_layer(by_group)

    # ---- body -----------------------------------------------------------------------------------

    def body(self, located: LocatedTokens, wanted: Tensor | None = None) -> Tensor:
        """Compute hidden states; see ``Decoder.forward`` for ``wanted``."""
        return self.model.decoder.forward(
            located.tokens, located.positions, self.model.caches, located.attend, wanted
        )

    # ---- head -----------------------------------------------------------------------------------

    def head(
        self,
        order: Tensor,
        hidden: Tensor,
        outputs: Outputs,
        sampling: SamplingInputs | None = None,
    ) -> None:
        """Sample the next tokens of some requests, and write them to the table; see ``sample``."""
        if not len(order):
            return
        self.sample(order, hidden, outputs, sampling)
        end_step(self.table, order, outputs.tokens)

    def sample(
        self,
        order: Tensor,
        hidden: Tensor,
        outputs: Outputs,
        sampling: SamplingInputs | None = None,
    ) -> None:
        """Sample the next tokens of some requests.

        Args:
            order: ``[N]`` int32: rows of the requests.
            hidden: ``[N, hidden]``: final hidden state of each request's last token.
            outputs: memory that logits and tokens are written to.
            sampling: inputs of the sampler. Default: looked up in the table.
        """
        if sampling is None:
            sampling = begin_step(self.table, order, self.model.block_size).sampling
        logits = self.model.decoder.logits(hidden, out=outputs.logits)
        sample_rows(logits, sampling, outputs.tokens)

    def new_outputs(self, count: int) -> Outputs:
        """Allocate the outputs of ``count`` requests."""
        decoder = self.model.decoder
        return Outputs(
            torch.empty(count, decoder.vocab_size, dtype=decoder.dtype, device=self.model.device),
            torch.empty(count, dtype=torch.int64, device=self.model.device),
        )
