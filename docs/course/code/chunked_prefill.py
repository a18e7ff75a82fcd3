"""The effect of a long prompt on another request's stream, computed whole and in chunks.

A decodes one token per step. After its eighth token B arrives, with a prompt of 1,200 tokens.
"""

import time
from dataclasses import dataclass
from math import ceil
from typing import Any

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.trace.step_record import StepRecord
from minimal_vllm_lab.sim.load import load_of_record

PROMPT = "The old captain looked at the sea, and"
LONG = 1200
GREEDY = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)


@dataclass(frozen=True)
class Measured:
    """Measurements taken while B's prompt was computed."""

    steps: list[StepRecord]
    """From B's arrival to its first token."""
    gaps: list[float]
    """How long A waited for each token meanwhile, in seconds."""


def main() -> None:
    print("most tokens                  A and B computed      A's longest gap   B's first token")
    for budget in (None, 512, 128, 32):
        seen = run(budget)
        if budget:
            check(seen, budget)
        plans = ["+".join(str(each.num_tokens) for each in step.scheduled) for step in seen.steps]
        shown = plans if len(plans) < 4 else [*plans[:2], "…", plans[-1]]
        print(
            f"{budget or 'no chunks':>11}   {', '.join(shown):>31}   "
            f"{1e3 * max(seen.gaps):13.0f} ms   {1e3 * sum(seen.gaps):13.0f} ms"
        )


def run(budget: int | None) -> Measured:
    options: dict[str, Any] = {"enable_chunked_prefill": False}
    if budget:
        options = {"max_num_batched_tokens": budget}
    records: list[StepRecord] = []
    llm = LLM(num_gpu_blocks_override=160, max_num_seqs=8, observers=[records.append], **options)
    llm.engine.add_request("A", llm.tokenizer.encode(PROMPT), GREEDY)
    while len(records) < 8:
        llm.engine.step()
    del records[:]

    llm.engine.add_request("B", [300 + index for index in range(LONG)], GREEDY)
    gaps: list[float] = []
    while not records or not records[-1].scheduled[-1].sampled_tokens:
        begun = time.monotonic()
        llm.engine.step()
        gaps.append(time.monotonic() - begun)
    return Measured(records, gaps)


def check(seen: Measured, budget: int) -> None:
    """Check the chapter's formulas: n steps, with c tokens of B's prompt in each."""
    c = budget - 1
    n = ceil(LONG / c)
    assert len(seen.steps) == n
    read = sum(load_of_record(step).kv_tokens for step in seen.steps)
    read_by_a = sum(step.scheduled[0].start + 1 for step in seen.steps)
    assert read - read_by_a == c * n * (n - 1) // 2 + LONG


if __name__ == "__main__":
    main()
