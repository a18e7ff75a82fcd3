"""Inputs of recorded steps with prompts, which the CPU sends to the GPU in one copy.

::

    tokens     A A A A A A B C D · ·    6 of A's prompt and 3 that decode, padded to the shape
    pieces     A0 A1 ·  ·  ·  ·         pieces of prompts (see ``PrefillWork``); padding is zeros
    decoding   B  C  D  ·               padded to one of two sizes, at most the number of tokens
    sampling   A  B  C  D  ·  ·         any number of the requests may sample
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from minimal_vllm.attention.kernels.prefill import PIECE_COLUMNS
from minimal_vllm.attention.triton_backend import TritonAttention
from minimal_vllm.device.transfer import Sender, send
from minimal_vllm.runner.shapes import MAX_PROMPTS, StepShape
from minimal_vllm.runner.step import MixedInputs
from minimal_vllm.runner.table import RowTable
from minimal_vllm.step.batch import Batch, Int32Array, IntArray

ALIGNMENT = 4
"""Alignment of regions in int32 numbers (16 bytes). With it, a kernel is compiled only once."""
PENDING = -1
"""Placeholder for a token that only the GPU knows, from the table of rows."""


class InputMemory:
    """Named regions of int32 numbers that graphs read, all sent in one copy.

    Args:
        regions: length of each region and its padding value, by name.
        device: the GPU.
    """

    def __init__(self, regions: Mapping[str, tuple[int, int]], device: torch.device) -> None:
        self._spans: dict[str, slice] = {}
        unset_regions = []
        end = 0
        for name, (size, unset) in regions.items():
            self._spans[name] = slice(end, end + size)
            unset_regions.append(np.full(-(-size // ALIGNMENT) * ALIGNMENT, unset, dtype=np.int32))
            end += len(unset_regions[-1])
        self._unset = np.concatenate(unset_regions)
        self._sent = self._unset
        self._numbers = send(self._sent, device).clone()
        self._sender = Sender(self._numbers)

    def __getitem__(self, name: str) -> Tensor:
        """Return a region, int32; its address never changes."""
        return self._numbers[self._spans[name]]

    def set(self, values: Mapping[str, IntArray | Int32Array]) -> None:
        """Send ``values`` to the beginning of their regions, and padding to the rest.

        What is there already is not sent again: with guesses of a draft model, often everything.
        """
        numbers = self._unset.copy()
        for name, array in values.items():
            numbers[self._spans[name]][: array.size] = array.reshape(-1)
        if not np.array_equal(numbers, self._sent):
            self._sent = numbers
            self._sender.send(numbers)


class StepInputs:
    """The inputs of recorded steps with prompts.

    Args:
        attention: cuts the prompts into pieces.
        table: the rows of the running requests.
        max_tokens: maximum number of tokens in a recorded step.
        max_num_seqs: maximum number of requests in a step.
        device: the GPU.
    """

    def __init__(
        self,
        attention: TritonAttention,
        table: RowTable,
        max_tokens: int,
        max_num_seqs: int,
        device: torch.device,
    ) -> None:
        self._attention = attention
        max_numbers = attention.max_prefill_pieces(max_tokens, MAX_PROMPTS) * PIECE_COLUMNS
        self._memory = InputMemory(
            {
                "tokens": (max_tokens, 0),
                "positions": (max_tokens, 0),
                "rows": (max_tokens, table.padding_row),
                "decode_tokens": (max_num_seqs, 0),
                "seq_lens": (max_num_seqs, 0),
                "decode_rows": (max_num_seqs, 0),
                "last_tokens": (max_num_seqs, 0),
                "sampling_rows": (max_num_seqs, table.padding_row),
                **{f"pieces {window}": (max_numbers, 0) for window in attention.windows},
            },
            device,
        )
        self._prefill = {
            window: attention.new_prefill_work(
                self._memory[f"pieces {window}"].view(-1, PIECE_COLUMNS), table.block_tables[0]
            )
            for window in attention.windows
        }

    def set(self, batch: Batch) -> None:
        """Send the numbers of a batch, for any shape that is large enough for it."""
        decodes = batch.decodes
        prefills = batch.prefills
        tokens = batch.input_ids.copy()
        tokens[batch.query_starts[batch.pending + 1] - 1] = PENDING
        sampling_rows = [request.row for request in batch.sampling]
        self._memory.set(
            {
                "tokens": tokens,
                "positions": batch.positions,
                "rows": np.repeat(batch.rows, batch.num_new),
                "decode_tokens": batch.query_starts[decodes],
                "seq_lens": batch.seq_lens[decodes],
                "decode_rows": batch.rows[decodes],
                "last_tokens": batch.logit_indices,
                "sampling_rows": np.array(sampling_rows, dtype=np.int64),
                **{
                    f"pieces {window}": self._attention.cut_prompts(
                        batch, prefills, batch.rows, window
                    )
                    for window in self._prefill
                },
            }
        )

    def of_shape(self, shape: StepShape) -> MixedInputs:
        """Return the inputs of a step's front and body."""
        memory = self._memory
        # A request that doesn't decode computes at least two tokens.
        num_prompts = min(MAX_PROMPTS, shape.num_tokens // 2)
        max_pieces = self._attention.max_prefill_pieces(shape.num_tokens, num_prompts)
        return MixedInputs(
            tokens=memory["tokens"][: shape.num_tokens],
            positions=memory["positions"][: shape.num_tokens],
            rows=memory["rows"][: shape.num_tokens],
            decode_tokens=memory["decode_tokens"][: shape.num_decodes],
            seq_lens=memory["seq_lens"][: shape.num_decodes],
            decode_rows=memory["decode_rows"][: shape.num_decodes],
            prefill={window: work.first(max_pieces) for window, work in self._prefill.items()},
        )

    def sampling_order(self, count: int) -> Tensor:
        """Return the rows of the first ``count`` requests that sample, int32."""
        return self._memory["sampling_rows"][:count]

    def last_tokens(self, count: int) -> Tensor:
        """Return the indices of the tokens that the first ``count`` requests sample from, int32."""
        return self._memory["last_tokens"][:count]
