"""Continuous batching: which request computes which tokens in which step.

One *step* runs the model once, on some tokens of some requests. *Static batching* runs a group of
requests until the last of them finishes. *Continuous batching* chooses a new batch for every step:
a request joins when there is room, and leaves when it finishes. This script shows, measured in this
run:

1. a chart of requests × steps: chunks of prompts, decodes beside them, one preemption,
2. the same requests in static groups: more steps for the same tokens.

The engine's code does not distinguish prefill from decode. A request is a list of tokens and a
counter of computed tokens. The scheduler lets the counter catch up, and the chart is the result.

Read next: step/request.py, engine/scheduler.py, step/batch.py (in src/minimal_vllm).
Run: python examples/02_continuous_batching.py
"""

from collections.abc import Iterator

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.trace.step_record import ScheduledRecord, StepRecord

MAX_NUM_SEQS = 4
BUDGET = 24
NUM_BLOCKS = 12

# Name -> tokens in the prompt, tokens to generate.
WORK = {"A": (15, 30), "B": (9, 8), "C": (6, 32), "D": (23, 19), "E": (62, 10), "F": (10, 14)}
LONGEST = "E"

Outputs = dict[str, list[int]]


def main() -> None:
    records: list[StepRecord] = []
    llm = LLM(
        num_gpu_blocks_override=NUM_BLOCKS,
        max_model_len=128,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=BUDGET,
        dtype="float32",  # with 16 bits, rounding depends on the batch, and may change a token
        observers=[records.append],
    )
    continuous = run(llm, list(WORK))
    show_chart(records)

    llm.engine.scheduler.pool.forget_all()  # the second run must not find blocks of the first
    num_continuous = len(records)
    static: Outputs = {}
    names = list(WORK)
    for first in range(0, len(names), MAX_NUM_SEQS):
        static |= run(llm, names[first : first + MAX_NUM_SEQS])
    compare(num_continuous, len(records) - num_continuous, continuous == static)


def run(llm: LLM, names: list[str]) -> Outputs:
    """Add these requests, step until the last one has finished, and return their tokens."""
    for name in names:
        length, num_output = WORK[name]
        params = SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True)
        llm.engine.add_request(name, prompt_of(name, length), params)
    outputs: Outputs = {}
    while llm.engine.has_unfinished_requests:
        for output in llm.engine.step():
            outputs[output.request_id] = output.outputs[0].token_ids
    return outputs


def prompt_of(name: str, length: int) -> list[int]:
    """Return a prompt of arbitrary tokens."""
    return [300 + (ord(name) * 101 + 37 * index) % 3000 for index in range(length)]


def show_chart(records: list[StepRecord]) -> None:
    print(f"1. At most {MAX_NUM_SEQS} requests at once, {BUDGET} tokens per step, ", end="")
    print(f"{NUM_BLOCKS} blocks of 16 tokens\n")
    print("              step " + "".join(f"{step:<10}" for step in range(0, len(records), 10)))
    for name, (length, num_output) in WORK.items():
        cells = "".join(cells_of(name, records))
        print(f"   {name}  {length:2} in, {num_output:2} out {cells}".rstrip())
    loads = [sum(entry.num_tokens for entry in record.scheduled) for record in records]
    bars = "".join("▁▂▃▄▅▆▇█"[min(7 * load // BUDGET, 7)] for load in loads)
    print(f"   tokens computed   {bars}  up to {max(loads)}\n")
    print("   ▓ a chunk of a prompt   █ the last chunk, which also samples the first token")
    print("   ─ decode of one token   ✗ preempted: its blocks went to earlier requests")
    print("   ▒ tokens computed again, except those still in the cache\n")
    explain_longest([entry for record in records for entry in record.scheduled])


def explain_longest(entries: list[ScheduledRecord]) -> None:
    own = [entry for entry in entries if entry.request_id == LONGEST]
    chunks = [str(entry.num_tokens) for entry in own if entry.start < WORK[LONGEST][0]]
    resumed = next(entry for entry in own if entry.cached_blocks)
    print(
        f"   {LONGEST}'s prompt was computed in chunks of {', '.join(chunks)}, the rest of the "
        "budget,"
    )
    print(f"   so that no decode had to wait. After its preemption, {resumed.start} of its tokens")
    print(f"   were still in the cache, and only {resumed.num_tokens} had to be computed again.\n")


def cells_of(name: str, records: list[StepRecord]) -> Iterator[str]:
    """Yield one character per step."""
    for record in records:
        entry = next((each for each in record.scheduled if each.request_id == name), None)
        if entry is not None:
            yield cell_of(entry)
        else:
            yield "✗" if name in record.preempted else " "


def cell_of(entry: ScheduledRecord) -> str:
    prompt_length = WORK[entry.request_id][0]
    if entry.cached_blocks:  # prompts have no common prefixes, so these are its own blocks
        return "▒"
    if entry.start >= prompt_length:
        return "─"
    return "▓" if entry.start + entry.num_tokens < prompt_length else "█"


def compare(num_continuous: int, num_static: int, equal: bool) -> None:
    num_tokens = sum(num_output for _, num_output in WORK.values())
    print(f"2. The same requests in static groups of {MAX_NUM_SEQS}\n")
    for batching, steps in (("continuous", num_continuous), ("static", num_static)):
        print(
            f"   {batching:11} {steps:3} steps  {'█' * (steps // 2):40} "
            f"{num_tokens / steps:.1f} tokens generated per step"
        )
    print(f"\n   The output tokens are equal: {'yes' if equal else 'NO'}")


if __name__ == "__main__":
    main()
