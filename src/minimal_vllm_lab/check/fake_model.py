"""A fake model for checks, whose KV cache holds tokens instead of keys and values.

Each slot holds the text up to the token that was computed there. A request must find its own text
in all of its slots, so a block that was shared, reused or freed wrongly is detected at once. The
next token is a function of the tokens alone, so each request's output is known in advance.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from minimal_vllm.sampling.row import SamplingRow
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import Request
from minimal_vllm_lab.check.lesson import Broken, Rule

Tokens = tuple[int, ...]

EOS = 7
VOCAB_SIZE = 32
GRAMMAR_LENGTH = 2

READS_OWN_TOKENS = Rule(
    "Each request finds the keys and values of its own tokens in its blocks.",
    "Attention reads whatever is in the blocks. The answer would be about another request's text, "
    "and nothing would crash.",
    "04-block-tables",
)
WRITES_ONCE = Rule(
    "In one step, no two tokens are written to the same slot.",
    "One of them would be lost. A partly filled block has one owner; only full blocks are shared.",
    "04-block-tables",
)
HAS_BLOCKS = Rule(
    "After its step, a request has ceil(computed tokens / block_size) blocks.",
    "A token without a block has no slot for its key and value.",
    "04-block-tables",
)


def next_token(tokens: Sequence[int]) -> int:
    """Return the token that follows ``tokens``, a fixed function of them."""
    return crc32(bytes(list(tokens))) % VOCAB_SIZE


class FakeGrammar:
    """A rule that any output of ``GRAMMAR_LENGTH`` tokens satisfies; it forbids no token."""

    error = ""

    def allowed_tokens(self, row: SamplingRow, /) -> bytearray:  # noqa: ARG002
        """Return a bit mask that allows every token."""
        return bytearray([0xFF] * (VOCAB_SIZE // 8))

    def count_allowed(self, row: SamplingRow, tokens: Sequence[int], /) -> int:  # noqa: ARG002
        """Return the number of ``tokens``, since every token is allowed."""
        return len(tokens)

    def is_complete(self, row: SamplingRow, /) -> bool:
        """Return whether the output has ``GRAMMAR_LENGTH`` tokens."""
        return len(row.token_ids) - row.num_prompt_tokens >= GRAMMAR_LENGTH

    def could_end(self, row: SamplingRow, /) -> Sequence[bool]:
        """Return whether the output was complete before each of its tokens, and is now."""
        num_output = len(row.token_ids) - row.num_prompt_tokens
        return [count >= GRAMMAR_LENGTH for count in range(num_output + 1)]


def expected_output(request: Request) -> list[int]:
    """Return the output of a request that runs alone.

    It ends at a stop token, when its grammar is complete, or at its maximum length.
    """
    tokens = request.token_ids[: request.num_prompt_tokens].tolist()
    output: list[int] = []
    while not _is_complete(request, output):
        output.append(next_token(tokens + output))
    return output


def _is_complete(request: Request, output: Sequence[int]) -> bool:
    if not output:
        return False
    stops = output[-1] in {*request.eos_token_ids, *(request.params.stop_token_ids or ())}
    return (
        (stops and len(output) >= request.params.min_tokens)
        or (request.grammar is not None and len(output) >= GRAMMAR_LENGTH)
        or request.num_prompt_tokens + len(output) >= request.max_num_tokens
    )


class FakeModel:
    """A model that executes plans on a cache of tokens, and reports wrong block tables."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._slots: list[Tokens | None] = [None] * (num_blocks * block_size)
        self._block_size = block_size

    def launch(self, plan: Plan) -> "FakeStep":
        """Begin to execute a plan, with the block tables as they are now.

        Raises:
            Broken: a request has too few or too many blocks.
        """
        for entry in plan.scheduled:
            self._check_table(entry)
        tables = [array("i", entry.request.block_table) for entry in plan.scheduled]
        return FakeStep(self._slots, self._block_size, plan.scheduled, tables)

    def run(self, plan: Plan) -> list[list[int]]:
        """Execute a plan, and return a list with one token for each request that samples.

        Raises:
            Broken: a token has no slot or shares its slot, or a request reads another request's
                tokens.
        """
        return self.launch(plan).wait()

    def _check_table(self, entry: ScheduledRequest) -> None:
        request, end = entry.request, entry.start + entry.num_new
        needed = -(-end // self._block_size)
        if len(request.block_table) != needed:
            raise Broken(
                HAS_BLOCKS,
                f"{request.request_id} has {len(request.block_table)} blocks",
                f"{needed}: it has {end} tokens, in blocks of {self._block_size}",
            )


@dataclass(frozen=True, slots=True)
class FakeStep:
    """A step that was launched. Steps are computed in the order of their launch."""

    slots: list[Tokens | None]
    """The cache: the text up to the token in each slot; None for an unwritten slot."""
    block_size: int
    """Number of slots per block."""
    entries: Sequence[ScheduledRequest]
    """Each request's part of the step."""
    tables: Sequence["array[int]"]
    """Block table of each request, as it was at the launch."""

    def wait(self) -> list[list[int]]:
        """Compute the step, and return a list with one token for each request that samples.

        All tokens of the steps before must have been appended to their requests.

        Raises:
            Broken: a token shares its slot, or a request reads another request's tokens.
        """
        written: dict[int, str] = {}
        for entry, table in zip(self.entries, self.tables, strict=True):
            self._write(entry, table, written)
        for entry, table in zip(self.entries, self.tables, strict=True):
            if not entry.request.finished:  # in each layer, all writes come before all reads
                self._read(entry, table)
        return [
            [next_token(entry.request.token_ids[: entry.start + entry.num_new])]
            for entry in self.entries
            if entry.num_logits
        ]

    def _write(
        self, entry: ScheduledRequest, table: Sequence[int], written: dict[int, str]
    ) -> None:
        request = entry.request
        for position in range(entry.start, entry.start + entry.num_new):
            slot = self._slot(table, position)
            if slot in written:
                raise Broken(
                    WRITES_ONCE,
                    f"{request.request_id} and {written[slot]} write to block "
                    f"{slot // self.block_size}, slot {slot % self.block_size}",
                )
            written[slot] = request.request_id
            self.slots[slot] = tuple(request.token_ids[: position + 1])

    def _read(self, entry: ScheduledRequest, table: Sequence[int]) -> None:
        request = entry.request
        for position in range(entry.start + entry.num_new):
            expected = tuple(request.token_ids[: position + 1])
            found = self.slots[self._slot(table, position)]
            if found != expected:
                block = table[position // self.block_size]
                seen = "an unwritten slot" if found is None else f"the last token of {list(found)}"
                raise Broken(
                    READS_OWN_TOKENS,
                    f"{request.request_id} finds {seen} in block {block}",
                    f"its token {position}, the last of {list(expected)}",
                )

    def _slot(self, table: Sequence[int], position: int) -> int:
        block = table[position // self.block_size]
        return block * self.block_size + position % self.block_size
