"""The tokens in cached blocks; the block pool itself only knows their hashes."""

from minimal_vllm.engine.scheduler_interface import SchedulerInterface
from minimal_vllm.trace.step_record import (
    AbortRecord,
    Listener,
    PlanRecord,
    Record,
    RequestRecord,
    ResetRecord,
    ScheduledRecord,
    StepRecord,
)

HASH_BYTES = 32
"""Length of the hash of a block's content."""


class BlockContents(Listener):
    """An observer that follows the records and keeps the tokens of each cached block.

    It belongs to the engine's thread.

    Attributes:
        requests: records of the requests that have not finished, by id.
    """

    def __init__(self, scheduler: SchedulerInterface) -> None:
        self._scheduler = scheduler
        self._forget_all()

    def _forget_all(self) -> None:
        self.requests: dict[str, RequestRecord] = {}
        self._tokens: dict[str, list[int]] = {}
        self._tokens_of_hash: dict[str, tuple[int, ...]] = {}

    def __call__(self, record: Record) -> None:
        """Update the contents with a record."""
        match record:
            case RequestRecord():
                self.requests[record.request_id] = record
                self._tokens[record.request_id] = list(record.prompt_token_ids)
            case AbortRecord():
                self._forget(record.request_id)
            case ResetRecord():
                self._forget_all()
            case PlanRecord():
                for entry in record.scheduled:
                    self._take_entry(entry)
            case StepRecord():
                self._take_step(record)

    def _take_entry(self, entry: ScheduledRecord) -> None:
        tokens = self._tokens.get(entry.request_id)
        if tokens is None:  # the request was aborted while the step ran
            return
        tokens.extend(entry.sampled_tokens)
        size = self._scheduler.config.block_size
        for index, block_hash in enumerate(entry.full_hashes, entry.first_full):
            self._tokens_of_hash[block_hash] = tuple(tokens[index * size : (index + 1) * size])

    def _take_step(self, record: StepRecord) -> None:
        for entry in record.scheduled:
            self._take_entry(entry)
        for request_id, _ in record.finished[record.num_aborted :]:
            self._forget(request_id)
        if len(self._tokens_of_hash) > 2 * record.num_blocks:
            kept = (block_hash[: 2 * HASH_BYTES] for block_hash in self.cached)
            self._tokens_of_hash = {each: self._tokens_of_hash[each] for each in kept}

    def _forget(self, request_id: str) -> None:
        del self.requests[request_id], self._tokens[request_id]

    @property
    def cached(self) -> dict[str, tuple[int, ...]]:
        """Tokens of each cached block, by the block's hash."""
        known, contents = self._tokens_of_hash, {}
        for block_hash in self._scheduler.pool.hashes.values():
            content = block_hash[:HASH_BYTES].hex()  # without the number of a group of layers
            if content in known:
                contents[block_hash.hex()] = known[content]
        return contents
