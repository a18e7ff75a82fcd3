"""A fake model for checks, whose KV cache holds tokens instead of keys and values.

Each slot holds the text up to the token that was computed there. A request must find its own text
in all of its slots, so a block that was shared, reused or freed wrongly is detected at once. The
next token is a function of the tokens alone, so each request's output is known in advance.
"""

from collections.abc import Sequence
from zlib import crc32

from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm_lab.check.lesson import Broken, Rule

Tokens = tuple[int, ...]

EOS = 7
VOCAB_SIZE = 32

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


def expected_output(prompt: Sequence[int], max_num_tokens: int) -> list[int]:
    """Return the output of a request that runs alone.

    It ends with ``EOS``, or when prompt and output have ``max_num_tokens`` tokens together.
    """
    tokens = list(prompt)
    while len(tokens) < max_num_tokens and (len(tokens) == len(prompt) or tokens[-1] != EOS):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeModel:
    """A model that executes plans on a cache of tokens, and reports wrong block tables."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._slots: list[Tokens | None] = [None] * (num_blocks * block_size)
        self._block_size = block_size

    def run(self, plan: Plan) -> list[list[int]]:
        """Execute a plan, and return a list with one token for each request that samples.

        Raises:
            Broken: a token has no slot or shares its slot, or a request reads another request's
                tokens.
        """
        written: dict[int, str] = {}
        for entry in plan.scheduled:
            self._write(entry, written)
        for entry in plan.scheduled:  # in each layer, all writes come before all reads
            self._read(entry)
        return [[next_token(request.token_ids)] for request in plan.sampling]

    def _write(self, entry: ScheduledRequest, written: dict[int, str]) -> None:
        request, end = entry.request, entry.start + entry.num_new
        needed = -(-end // self._block_size)
        if len(request.block_table) != needed:
            raise Broken(
                HAS_BLOCKS,
                f"{request.request_id} has {len(request.block_table)} blocks",
                f"{needed}: it has {end} tokens, in blocks of {self._block_size}",
            )
        for position in range(entry.start, end):
            slot = self._slot(entry, position)
            if slot in written:
                raise Broken(
                    WRITES_ONCE,
                    f"{request.request_id} and {written[slot]} write to block "
                    f"{slot // self._block_size}, slot {slot % self._block_size}",
                )
            written[slot] = request.request_id
            self._slots[slot] = tuple(request.token_ids[: position + 1])

    def _read(self, entry: ScheduledRequest) -> None:
        request = entry.request
        for position in range(entry.start + entry.num_new):
            expected = tuple(request.token_ids[: position + 1])
            found = self._slots[self._slot(entry, position)]
            if found != expected:
                block = request.block_table[position // self._block_size]
                seen = "an unwritten slot" if found is None else f"the last token of {list(found)}"
                raise Broken(
                    READS_OWN_TOKENS,
                    f"{request.request_id} finds {seen} in block {block}",
                    f"its token {position}, the last of {list(expected)}",
                )

    def _slot(self, entry: ScheduledRequest, position: int) -> int:
        block = entry.request.block_table[position // self._block_size]
        return block * self._block_size + position % self._block_size
