"""Load of a step: the amount of its work, in the few numbers that a cost model needs."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from minimal_vllm.cache.layer_groups import Window
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request
from minimal_vllm.trace.step_record import StepRecord


class StepLoad(NamedTuple):
    """Work of one step."""

    num_requests: int
    """Number of requests in the step."""
    num_tokens: int
    """Number of computed tokens."""
    num_samples: int
    """Number of sampled rows of logits, that is of requests that get a token."""
    kv_tokens: int
    """Number of tokens whose keys and values are read. Each request's context counts once; shared
    tokens count once for all requests."""
    attended: int
    """Number of pairs of a computed token and a token that it attends to, itself included."""
    shared: int = 0
    """Number of the attended pairs whose second token is read for another request anyway (cascade
    attention)."""
    admitted: int = 0
    """Number of prompt tokens, cached or not, that the CPU processes while the GPU is idle."""

    def with_shared(self, num_pairs: int) -> "StepLoad":
        """Return the same load with ``num_pairs`` attended pairs marked as shared.

        Their keys and values are then not read again.
        """
        return self._replace(kv_tokens=self.kv_tokens - num_pairs, shared=num_pairs)

    def within(self, window: Window) -> "StepLoad":
        """Return the load of a layer with a sliding window, at most: None is no window.

        A token attends to at most ``window`` tokens. The load is less than this if the contexts of
        some requests are shorter than the window, and those of others longer.
        """
        if window is None:
            return self
        return self._replace(
            kv_tokens=min(
                self.kv_tokens + self.shared,
                self.num_requests * (window - 1) + self.num_tokens,
            ),
            attended=min(self.attended, self.num_tokens * window),
            shared=0,
        )


def load_of_plan(plan: Plan, num_asleep: int = 0, asleep_context: int = 0) -> StepLoad:
    """Return the load of a plan, plus that of sleeping decodes, which the plan leaves out.

    Args:
        plan: plan of the engine's scheduler or of the lazy one.
        num_asleep: number of decodes that the plan leaves out.
        asleep_context: total length of their contexts in tokens, including the decoded tokens.
    """
    entries = [(entry.start, entry.num_new) for entry in plan.scheduled]
    num_tokens, kv_tokens, attended = _add_up(entries)
    return StepLoad(
        num_requests=len(plan.scheduled) + num_asleep,
        num_tokens=num_tokens + num_asleep,
        num_samples=sum([entry.num_logits for entry in plan.scheduled]) + num_asleep,
        kv_tokens=kv_tokens + asleep_context,
        attended=attended + asleep_context,
    )


def load_of_decodes(count: int, context: int) -> StepLoad:
    """Return the load of a step that only decodes: one token for each of ``count`` requests.

    ``context`` is the total length of their contexts, including the decoded tokens.
    """
    return StepLoad(count, count, count, context, context)


def count_shared(
    decoding: Sequence[Request], block_size: int, windows: Sequence[Window] = (None,)
) -> int:
    """Count the attended pairs of decodes that cascade attention need not read again.

    An attended pair is a computed token and a token that it attends to. The groups of requests with
    a shared prefix are those that the engine forms. Unlike the engine, this includes groups that
    save too little time to be worth a kernel.

    Args:
        decoding: requests of a step that only decodes.
        block_size: tokens per KV block.
        windows: sliding window of each group of layers.
    """
    from minimal_vllm.step.shared_prefix import group_by_beginning  # needs numpy

    groups = group_by_beginning(decoding, block_size, windows)
    return sum((len(each.members) - 1) * each.num_tokens for each in groups)


def load_of_record(record: StepRecord) -> StepLoad:
    """Return the load of a recorded step."""
    entries = [(entry.start, entry.num_tokens) for entry in record.scheduled]
    num_tokens, kv_tokens, attended = _add_up(entries)
    num_samples = sum(len(each.sampled_tokens) + each.num_rejected for each in record.scheduled)
    return StepLoad(len(entries), num_tokens, num_samples, kv_tokens, attended)


def _add_up(entries: Iterable[tuple[int, int]]) -> tuple[int, int, int]:
    """Return the computed tokens, read tokens and attended pairs of (start, count) entries."""
    num_tokens = kv_tokens = attended = 0
    for start, num_new in entries:
        end = start + num_new
        num_tokens += num_new
        kv_tokens += end
        attended += num_new * (start + 1 + end) // 2  # start + 1, start + 2, …, end
    return num_tokens, kv_tokens, attended
