"""Which tokens are in the cached blocks: the pool itself knows their hashes alone."""

from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.trace.step_record import (
    AbortRecord,
    Record,
    Recorder,
    RequestRecord,
    ResetRecord,
    StepRecord,
)


class BlockContents(Recorder):
    """Follows the records; belongs to the engine's thread.

    Attributes:
        requests: the record of each request that has not ended.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._forget_all()

    def _forget_all(self) -> None:
        self.requests: dict[str, RequestRecord] = {}
        self._tokens: dict[str, list[int]] = {}
        self._of_hash: dict[str, tuple[int, ...]] = {}

    def __call__(self, record: Record) -> None:
        """Take in what has happened."""
        match record:
            case RequestRecord():
                self.requests[record.request_id] = record
                self._tokens[record.request_id] = list(record.prompt_token_ids)
            case AbortRecord():
                self._forget(record.request_id)
            case ResetRecord():
                self._forget_all()
            case StepRecord():
                self._take_step(record)

    def _take_step(self, record: StepRecord) -> None:
        size = self._scheduler.config.block_size
        for entry in record.scheduled:
            tokens = self._tokens[entry.request_id]
            for index, block_hash in enumerate(entry.full_hashes, entry.start // size):
                self._of_hash[block_hash] = tuple(tokens[index * size : (index + 1) * size])
            if entry.sampled_token is not None:
                tokens.append(entry.sampled_token)
        for request_id, _ in record.finished[record.num_aborted :]:
            self._forget(request_id)
        if len(self._of_hash) > 2 * record.num_blocks:
            self._of_hash = self.cached

    def _forget(self, request_id: str) -> None:
        del self.requests[request_id], self._tokens[request_id]

    @property
    def cached(self) -> dict[str, tuple[int, ...]]:
        """The hash of each block that can be found, with its tokens."""
        hashes = (block_hash.hex() for block_hash in self._scheduler.pool.hashes.values())
        return {each: self._of_hash[each] for each in hashes if each in self._of_hash}
