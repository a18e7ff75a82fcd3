"""The same text, generated with and without a KV cache, both times by the engine.

Without: each new token is a request of its own, whose prompt is the whole text so far. (The prefix
cache, which would find the text's beginning again, is off: chapter 6 is about it.)
With: one request.
"""

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.trace.step_record import StepRecord

PROMPT = "The old captain looked at the sea, and"
NUM_NEW = 128


def main() -> None:
    records: list[StepRecord] = []
    llm = LLM(
        device="cpu", dtype="float32", enable_prefix_caching=False, observers=[records.append]
    )
    prompt = llm.tokenizer.encode(PROMPT)
    complete(llm, prompt, 1)  # the first step of a process is slow

    del records[:]
    text = list(prompt)
    for _ in range(NUM_NEW):
        text += complete(llm, text, 1)
    without = list(records)

    del records[:]
    same = prompt + complete(llm, prompt, NUM_NEW) == text
    show(without, records)
    print(f"\nThe same {NUM_NEW} tokens came out: {'yes' if same else 'NO'}")
    check(without, records, len(prompt))
    check_bytes(llm)


def complete(llm: LLM, prompt: list[int], num_new: int) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=num_new, ignore_eos=True)
    (output,) = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)
    return output.outputs[0].token_ids


def tokens_of(record: StepRecord) -> int:
    return sum(entry.num_tokens for entry in record.scheduled)


def show(without: list[StepRecord], with_cache: list[StepRecord]) -> None:
    print("           without a cache          with a cache")
    print("token   computed   time          computed   time")
    for index in (0, 1, 31, 63, 127):
        cells = [
            f"{tokens_of(record):8} {1e3 * record.run_seconds:6.1f} ms"
            for record in (without[index], with_cache[index])
        ]
        print(f"{index + 1:5}   {'       '.join(cells)}")
    totals = [
        f"{sum(map(tokens_of, records)):8} {1e3 * sum(r.run_seconds for r in records):6.0f} ms"
        for records in (without, with_cache)
    ]
    print(f"  all   {'       '.join(totals)}")


def check(without: list[StepRecord], with_cache: list[StepRecord], length: int) -> None:
    """Check the chapter's formulas: P prompt tokens, N new ones."""
    assert sum(map(tokens_of, without)) == NUM_NEW * length + NUM_NEW * (NUM_NEW - 1) // 2
    assert sum(map(tokens_of, with_cache)) == length + NUM_NEW - 1


def check_bytes(llm: LLM) -> None:
    """Check that the cache has 2·L·K·D numbers of 4 bytes for each token it can hold."""
    model, num_tokens = llm.built.files.config, llm.built.num_blocks * llm.config.block_size
    allocated = sum(tensor.nbytes for cache in llm.built.caches for tensor in cache)
    per_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 4
    assert allocated == num_tokens * per_token


if __name__ == "__main__":
    main()
