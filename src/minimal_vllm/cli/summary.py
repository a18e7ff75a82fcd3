"""A line that sums up a run, from the records of its steps."""

from collections import Counter

from minimal_vllm.trace.step_record import StepRecord


class RunSummary:
    """An observer of the engine that sums up its steps since ``reset``."""

    def __init__(self) -> None:
        self._seen_queries = self._seen_hits = 0
        self._queries = self._hits = 0
        self.reset()

    def reset(self) -> None:
        """Start counting again from zero."""
        self._begun: float | None = None
        self._first_token = self._ended = 0.0
        self._num_tokens = self._num_preemptions = 0
        self._num_guesses = self._num_accepted = 0
        self._num_blocks = self._max_blocks = 0
        self._tables: dict[str, list[int]] = {}
        self._holders: Counter[int] = Counter()
        self._seen_queries, self._seen_hits = self._queries, self._hits

    def __call__(self, record: StepRecord) -> None:
        """Add a step."""
        if self._begun is None:
            self._begun = record.started
        self._ended = record.started + (
            record.schedule_seconds + record.run_seconds + record.update_seconds
        )
        sampled = sum(len(entry.sampled_tokens) for entry in record.scheduled)
        if sampled and not self._num_tokens:
            self._first_token = self._ended
        self._num_tokens += sampled
        self._num_preemptions += len(record.preempted)
        for entry in record.scheduled:
            self._num_guesses += entry.num_guesses
            self._num_accepted += max(len(entry.sampled_tokens) - 1, 0)
        self._queries, self._hits = record.prefix_queries, record.prefix_hits
        self._count_blocks(record)

    def _count_blocks(self, record: StepRecord) -> None:
        """Count used blocks. A block may be in several tables; some tables end with the step."""
        self._num_blocks = record.num_blocks
        for request_id in record.preempted:
            self._release(request_id)
        for entry in record.scheduled:
            blocks = [*entry.cached_blocks, *entry.new_blocks]
            self._tables.setdefault(entry.request_id, []).extend(blocks)
            self._holders.update(blocks)
        self._max_blocks = max(self._max_blocks, len(self._holders))
        for entry in record.scheduled:
            for _ in range(entry.num_freed_blocks):
                self._let_go(self._tables[entry.request_id].pop())
        for request_id, _ in record.finished:
            self._release(request_id)

    def _release(self, request_id: str) -> None:
        for block in self._tables.pop(request_id, ()):
            self._let_go(block)

    def _let_go(self, block: int) -> None:
        self._holders[block] -= 1
        if not self._holders[block]:
            del self._holders[block]

    def __str__(self) -> str:
        if self._begun is None or not self._num_tokens:
            return "no tokens were generated"
        seconds = self._ended - self._begun
        queries = self._queries - self._seen_queries
        hits = self._hits - self._seen_hits
        tokens = "1 token" if self._num_tokens == 1 else f"{self._num_tokens:,} tokens"
        preemptions = (
            "1 preemption" if self._num_preemptions == 1 else f"{self._num_preemptions} preemptions"
        )
        return (
            f"{tokens} in {seconds:.2f} s ({self._num_tokens / seconds:,.0f} tokens/s, "
            f"first after {self._first_token - self._begun:.2f} s) · "
            f"KV cache: {self._max_blocks:,} of {self._num_blocks:,} blocks at most, "
            f"{100 * hits / max(queries, 1):.0f} % of the prompt from the prefix cache, "
            f"{preemptions}{self._describe_guesses()}"
        )

    def _describe_guesses(self) -> str:
        if not self._num_guesses:
            return ""
        share = 100 * self._num_accepted / self._num_guesses
        return f" · {self._num_guesses:,} tokens guessed, {share:.0f} % of them right"
