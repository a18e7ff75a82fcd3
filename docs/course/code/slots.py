"""The layout of one step's tokens, and the cost of a rectangle instead.

First the arrays of a real step, with blocks of 4 tokens: A and B decode, C has just arrived. Then
the time of a step with tokens in one row, and of one in which all requests are padded to the
longest.
"""

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.step.batch import build_batch
from minimal_vllm.trace.step_record import StepRecord

BLOCK = 4
PROMPTS = {"A": "The old captain looked at the sea, and", "B": "My dear sister,"}
LATE = {"C": "The door opened, and"}
LONG = 128


def main() -> None:
    llm = LLM(device="cpu", block_size=BLOCK, num_gpu_blocks_override=16, max_model_len=64)
    add(llm, PROMPTS)
    for _ in range(6):
        llm.engine.step()
    add(llm, LATE)
    show_step(llm)

    records: list[StepRecord] = []
    llm = LLM(device="cpu", enable_prefix_caching=False, observers=[records.append])
    show_time("1 prompt and 7 decodes, in one row", step_of(llm, 1, records))
    show_time("the same 8 in a rectangle", step_of(llm, 8, records))


def add(llm: LLM, prompts: dict[str, str]) -> None:
    for name, prompt in prompts.items():
        params = SamplingParams(temperature=0, max_tokens=9)
        llm.engine.add_request(name, llm.tokenizer.encode(prompt), params)


def show_step(llm: LLM) -> None:
    """Plan the next step, and show its arrays. The step is never run."""
    plan = llm.engine.scheduler.schedule()
    batch = build_batch(plan, BLOCK)
    row: list[object] = []
    slots: list[object] = []
    print("request        computed   new   block table")
    for entry in plan.scheduled:
        table = entry.request.block_table
        print(f"{entry.request.request_id:14} {entry.start:8} {entry.num_new:5}   {list(table)}")
        for position in range(entry.start, entry.start + entry.num_new):
            row.append(entry.request.request_id)
            slots.append(table[position // BLOCK] * BLOCK + position % BLOCK)
    words = [llm.tokenizer.decode([token]).strip() for token in batch.input_ids.tolist()]
    cells = {
        "": row,
        "input_ids": words,
        "positions": batch.positions.tolist(),
        "slot_mapping": slots,
    }
    print()
    for name, values in cells.items():
        print(f"{name:12} " + "".join(f"{value!s:>8}" for value in values))
    print(f"query_starts {batch.query_starts.tolist()}, seq_lens {batch.seq_lens.tolist()}\n")
    assert batch.slot_mapping.tolist() == slots


def step_of(llm: LLM, num_long: int, records: list[StepRecord]) -> StepRecord:
    """Plan a step of eight requests, some of which have long prompts; the others decode."""
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    for index in range(8 - num_long):
        llm.engine.add_request(f"short {index}", [300 + index], params)
    llm.engine.step()
    for index in range(num_long):
        llm.engine.add_request(f"long {index}", [400 + index] * LONG, params)
    llm.engine.step()
    record = records[-1]
    while llm.engine.has_unfinished_requests:
        llm.engine.step()
    return record


def show_time(how: str, record: StepRecord) -> None:
    count = sum(entry.num_tokens for entry in record.scheduled)
    print(f"{how:35} {count:5} tokens {1e3 * record.run_seconds:8.1f} ms")


if __name__ == "__main__":
    main()
