"""How much work a step is, in the few numbers that a cost model reckons with."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request
from minimal_vllm.step.shared_prefix import group_by_beginning
from minimal_vllm.trace.step_record import StepRecord


class StepLoad(NamedTuple):
    """The work of one step."""

    num_requests: int
    num_tokens: int
    """Tokens computed."""
    num_samples: int
    """Rows of logits: requests that get a token."""
    kv_tokens: int
    """Tokens whose keys and values are read: each request's context, once; what is ``shared``, once
    for all."""
    attended: int
    """Pairs of a computed token and a token that it attends to, itself included."""
    shared: int = 0
    """Of these, pairs whose second token is read for another request anyway: cascade attention."""
    admitted: int = 0
    """Prompt tokens, cached or not, that the CPU takes in while the GPU has nothing to do."""

    def sharing(self, num_pairs: int) -> "StepLoad":
        """The same work, if so many pairs need no reading of their own."""
        return self._replace(kv_tokens=self.kv_tokens - num_pairs, shared=num_pairs)


def load_of_plan(plan: Plan, num_asleep: int = 0, asleep_context: int = 0) -> StepLoad:
    """The work that a plan asks for, and that of the decodes which it leaves out.

    Args:
        plan: of the engine's scheduler, or of the lazy one.
        num_asleep: how many decodes it leaves out.
        asleep_context: the length of their contexts, the decoded token included, together.
    """
    entries = [(entry.start, entry.num_new) for entry in plan.scheduled]
    num_tokens, kv_tokens, attended = _add_up(entries)
    return StepLoad(
        num_requests=len(plan.scheduled) + num_asleep,
        num_tokens=num_tokens + num_asleep,
        num_samples=sum([entry.samples for entry in plan.scheduled]) + num_asleep,
        kv_tokens=kv_tokens + asleep_context,
        attended=attended + asleep_context,
    )


def load_of_decodes(count: int, context: int) -> StepLoad:
    """The work of a step in which ``count`` requests get a token, and nothing else happens."""
    return StepLoad(count, count, count, context, context)


def count_shared(decoding: Sequence[Request], block_size: int) -> int:
    """Pairs of these decodes' step whose token is read for another anyway, by cascade attention.

    The groups are the engine's, but for those that would save it too little to be worth a kernel.
    """
    groups = group_by_beginning(decoding, block_size)
    return sum((len(each.members) - 1) * each.num_tokens for each in groups)


def load_of_record(record: StepRecord) -> StepLoad:
    """The work that a recorded step did."""
    entries = [(entry.start, entry.num_tokens) for entry in record.scheduled]
    num_tokens, kv_tokens, attended = _add_up(entries)
    num_samples = sum(entry.sampled_token is not None for entry in record.scheduled)
    return StepLoad(len(entries), num_tokens, num_samples, kv_tokens, attended)


def _add_up(entries: Iterable[tuple[int, int]]) -> tuple[int, int, int]:
    """Tokens computed, tokens read, and pairs attended, given each request's start and number."""
    num_tokens = kv_tokens = attended = 0
    for start, num_new in entries:
        end = start + num_new
        num_tokens += num_new
        kv_tokens += end
        attended += num_new * (start + 1 + end) // 2  # start + 1, start + 2, …, end
    return num_tokens, kv_tokens, attended
