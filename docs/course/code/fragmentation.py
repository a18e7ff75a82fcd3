"""A memory of 4,096 tokens, lent in two ways: room for the longest text, or block by block.

The requests are the same: short and long texts, mixed as in chats. Their lengths are not known in
advance. A text may become as long as the model can read, 2,048 tokens.
"""

import time
from random import Random

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.trace.step_record import StepRecord

PROMPT = "The old captain looked at the sea, and"
CAPACITY, LONGEST, BLOCK = 4096, 2048, 16
OUTPUT_LENGTHS = [min(int(Random(seed).lognormvariate(3.2, 0.8)), 64) for seed in range(16)]


def main() -> None:
    lengths = " ".join(map(str, sorted(OUTPUT_LENGTHS)))
    print(f"{len(OUTPUT_LENGTHS)} requests want {lengths} tokens\n")
    print("memory is lent            at once   steps   seconds   of what is lent, used")
    run("2,048 tokens to each", max_num_seqs=CAPACITY // LONGEST, unit=LONGEST)
    records = run("in blocks of 16 tokens", max_num_seqs=256, unit=BLOCK)
    show_block_sizes(records)


def run(how: str, max_num_seqs: int, unit: int) -> list[StepRecord]:
    """Serve all requests, at most ``max_num_seqs`` at once, with memory lent in units."""
    records: list[StepRecord] = []
    llm = LLM(
        device="cpu",
        num_gpu_blocks_override=CAPACITY // BLOCK,
        max_model_len=LONGEST,
        max_num_seqs=max_num_seqs,
        enable_prefix_caching=False,
        observers=[records.append],
    )
    params = [
        SamplingParams(seed=seed, max_tokens=length, ignore_eos=True)
        for seed, length in enumerate(OUTPUT_LENGTHS)
    ]
    begun = time.perf_counter()
    llm.generate([PROMPT] * len(params), params, use_tqdm=False)
    seconds = time.perf_counter() - begun

    held = [length for record in records for length in lengths_in(record)]
    lent = sum(round_up(length, unit) for length in held)
    print(
        f"{how:25} {len(held) / len(records):7.1f} {len(records):7} {seconds:9.1f} "
        f"{100 * sum(held) / lent:12.1f} %"
    )
    return records


def lengths_in(record: StepRecord) -> list[int]:
    """Return the number of cached tokens of each running request after this step."""
    return [entry.start + entry.num_tokens for entry in record.scheduled]


def round_up(length: int, unit: int) -> int:
    return -(-length // unit) * unit


def show_block_sizes(records: list[StepRecord]) -> None:
    held = [length for record in records for length in lengths_in(record)]
    print("\nblock size    unused slots per request   of what is lent, used")
    for size in (1, 4, 16, 64, 256):
        wasted = [round_up(length, size) - length for length in held]
        assert max(wasted) < size
        used = 100 * sum(held) / (sum(held) + sum(wasted))
        print(f"{size:10} {sum(wasted) / len(held):17.1f} {used:25.1f} %")


if __name__ == "__main__":
    main()
