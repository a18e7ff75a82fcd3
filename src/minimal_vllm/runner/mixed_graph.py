"""Steps with prompts in them as recorded graphs.

While requests arrive one by one, nearly every step has a part of a prompt in it. Launched kernel by
kernel it takes the CPU longer than the GPU, unless it has thousands of tokens. So such steps are
recorded, too. What makes that possible is that no grid depends on what is computed, only on how
much at most; programs that find nothing to do end at once::

    tokens     A A A A A A B C D · ·    6 of A's prompt, three that decode; padded to the next size
    pieces     A0 A1 ·  ·  ·  ·         of prompts, see ``prefill``; all zeros where there is none
    decoding   B  C  D  ·               padded to few or to all requests (not more than tokens)
    sampling   A  B  C  D  ·  ·         a recording of its own: any number of requests may sample

All these numbers lie in one piece of memory, which the CPU sends at once.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minimal_vllm.attention.kernels.prefill import PIECE_COLUMNS, PrefillWork
from minimal_vllm.attention.triton_backend import TritonMetadata
from minimal_vllm.device.transfer import send
from minimal_vllm.model.step import Step
from minimal_vllm.runner.cuda_graph import GraphMemory, StepOutputs, sample_and_end
from minimal_vllm.runner.kernels.rows import begin_step, place_tokens
from minimal_vllm.runner.recording import Recorder, Recording, next_size, token_counts
from minimal_vllm.step.batch import Batch, Int32Array, IntArray
from minimal_vllm.step.plan import Plan

MOST_PROMPTS = 64
"""Of a recorded step: each may leave its last tile of tokens nearly empty."""
FEW_REQUESTS = 32
"""A grid for fewer decoding requests saves the time in which programs find nothing to do."""
LINE = 4
"""Regions begin at multiples of 16 bytes: so kernels are compiled once, whatever the sizes."""
PENDING = -1
"""Stands for a token that only the table of rows knows."""
TOKEN_INPUTS = ("tokens", "positions", "token_rows")
DECODE_INPUTS = ("decoding_tokens", "seq_lens", "decoding_rows")


class InputMemory:
    """Numbers that recordings read, sent in one piece.

    Args:
        regions: name -> how many there are, and what those are that nobody sets.
        device: the GPU.
    """

    def __init__(self, regions: Mapping[str, tuple[int, int]], device: torch.device) -> None:
        self._spans: dict[str, slice] = {}
        parts, end = [], 0
        for name, (size, unset) in regions.items():
            self._spans[name] = slice(end, end + size)
            parts.append(np.full(-(-size // LINE) * LINE, unset, dtype=np.int32))
            end += len(parts[-1])
        self._unset = np.concatenate(parts)
        self._numbers = send(self._unset, device).clone()

    def __getitem__(self, name: str) -> Tensor:
        """A region, int32, where it will always be."""
        return self._numbers[self._spans[name]]

    def set(self, values: Mapping[str, IntArray | Int32Array]) -> None:
        """The beginnings of regions; all else becomes unset."""
        numbers = self._unset.copy()
        for name, array in values.items():
            numbers[self._spans[name]][: array.size] = array.reshape(-1)
        self._numbers.copy_(send(numbers, self._numbers.device), non_blocking=True)


class MixedGraphs:
    """Records steps of prompts and decoding requests, and replays them.

    Args:
        memory: what they read and write.
        recorder: records them.
        most_tokens: of the largest step that is recorded.
    """

    def __init__(self, memory: GraphMemory, recorder: Recorder, most_tokens: int) -> None:
        self._memory, self._recorder = memory, recorder
        attention, table = memory.attention, memory.table
        self._token_counts = list(token_counts(most_tokens))
        most_requests = memory.batch_sizes[-1]
        self._decode_counts = sorted({min(FEW_REQUESTS, most_requests), most_requests})
        most_numbers = attention.most_prefill_pieces(most_tokens, MOST_PROMPTS) * PIECE_COLUMNS
        regions = {
            "tokens": (most_tokens, 0),
            "positions": (most_tokens, 0),
            "token_rows": (most_tokens, table.nobody),
            **dict.fromkeys(DECODE_INPUTS, (most_requests, 0)),
            "last_tokens": (most_requests, 0),
            "sampling_rows": (most_requests, table.nobody),
            **{f"pieces {window}": (most_numbers, 0) for window in attention.windows},
        }
        self._inputs = InputMemory(regions, memory.state.device)
        self._prefill = {
            window: attention.new_prefill_work(
                self._inputs[f"pieces {window}"].view(-1, PIECE_COLUMNS), table.block_tables
            )
            for window in attention.windows
        }
        weight = memory.state.model.embed_tokens.weight
        self._hidden = weight.new_zeros(most_tokens, weight.shape[1])
        self._bodies: dict[tuple[int, int], Recording] = {}
        self._heads: dict[int, Recording] = {}

    def fits(self, batch: Batch) -> bool:
        """Whether there is a recording for such a step."""
        return (
            len(batch.input_ids) <= self._token_counts[-1]
            and len(np.flatnonzero(batch.num_new > 1)) <= MOST_PROMPTS
            and not batch.wants_all_logits
        )

    def replay(self, plan: Plan, batch: Batch) -> StepOutputs:
        """Compute a step that fits, all of whose requests are in the table."""
        memory, num_sampling = self._memory, len(batch.sampling)
        decoding = np.flatnonzero(batch.num_new == 1)
        self._inputs.set(self._numbers_of(batch, decoding))
        num_tokens = next_size(self._token_counts, len(batch.input_ids))
        num_decoding = min(next_size(self._decode_counts, len(decoding)), num_tokens)
        memory.note_shared([plan.scheduled[place].request for place in decoding], num_decoding)
        self._bodies[num_tokens, num_decoding].replay()
        if num_sampling:
            self._heads[next_size(memory.batch_sizes, num_sampling)].replay()
        return memory.outputs.first(num_sampling)

    def _numbers_of(self, batch: Batch, decoding: IntArray) -> dict[str, IntArray | Int32Array]:
        tokens, prompts = batch.input_ids.copy(), np.flatnonzero(batch.num_new > 1)
        tokens[batch.query_starts[batch.pending + 1] - 1] = PENDING
        cut = self._memory.attention.cut_prompts
        return {
            "tokens": tokens,
            "positions": batch.positions,
            "token_rows": np.repeat(batch.rows, batch.num_new),
            "decoding_tokens": batch.query_starts[decoding],
            "seq_lens": batch.seq_lens[decoding],
            "decoding_rows": batch.rows[decoding],
            "last_tokens": batch.logit_indices,
            "sampling_rows": np.array([request.row for request in batch.sampling], dtype=np.int64),
            **{
                f"pieces {window}": cut(batch, prompts, batch.rows, window)
                for window in self._prefill
            },
        }

    # ---- record ---------------------------------------------------------------------------------

    def small_steps(self) -> Iterator[Callable[[], None]]:
        """What needs most of the kernels that recordings need."""
        yield from (partial(self._compute, self._token_counts[0], n) for n in self._decode_counts)
        yield partial(self._sample, self._memory.batch_sizes[-1])

    def record(self, *, progress: bool) -> None:
        """With inputs that are all unset: what is computed touches nobody."""
        counts = product(self._token_counts, self._decode_counts)
        sizes = sorted({(tokens, min(decoding, tokens)) for tokens, decoding in counts})
        hidden = None if progress else True
        for size in tqdm(sizes[::-1], desc="Recording graphs of prompts", disable=hidden):
            self._bodies[size] = self._recorder.record(partial(self._compute, *size))
        for count in self._memory.batch_sizes[::-1]:
            self._heads[count] = self._recorder.record(partial(self._sample, count))

    def _compute(self, num_tokens: int, num_decoding: int) -> None:
        """The hidden states of all tokens; leaves ``_hidden``."""
        memory, inputs = self._memory, self._inputs
        state, attention, tables = memory.state, memory.attention, memory.table.block_tables
        tokens, positions, rows = (inputs[name][:num_tokens] for name in TOKEN_INPUTS)
        placed = place_tokens(memory.table, tokens, positions, rows, state.block_size)
        token, seq_lens, row = (inputs[name][:num_decoding] for name in DECODE_INPUTS)
        shared = memory.shared(num_decoding) if memory.cascade else None
        decode = attention.plan_decode(token, seq_lens, row, tables, shared)
        num_prompts = min(MOST_PROMPTS, num_tokens // 2)
        most_pieces = attention.most_prefill_pieces(num_tokens, num_prompts)
        prefill: dict[int | None, PrefillWork | None] = {
            window: work.first(most_pieces) for window, work in self._prefill.items()
        }
        metadata = TritonMetadata(placed.slots, decode, shared, prefill, [])
        step = Step(state.backend.ops, attention, metadata)
        hidden = state.model.forward(placed.tokens, placed.positions, state.caches, step)
        self._hidden[:num_tokens] = hidden

    def _sample(self, count: int) -> None:
        """The tokens of those that sample, from ``_hidden``."""
        state, table = self._memory.state, self._memory.table
        order = self._inputs["sampling_rows"][:count]
        rows = begin_step(table, order, state.block_size)
        hidden = self._hidden.index_select(0, self._inputs["last_tokens"][:count])
        sample_and_end(state, table, order, rows, hidden, self._memory.outputs.first(count))
