"""The same eight requests in pools that hold fewer and fewer of them.

Each may generate 50 tokens. Some generate fewer, but it is not known in advance which.
"""

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.trace.step_record import StepRecord

PROMPT = "The old captain looked at the sea, and"
PROMPT_LENGTH, MAY_WRITE = 10, 50
WRITE = [50, 45, 50, 40, 50, 30, 45, 50]

Texts = list[list[int]]


def main() -> None:
    print("                          requests    blocks    preemp-   tokens computed")
    print("blocks   prefix cache   at once   in use    tions     once   again   steps")
    texts = [
        run(num_blocks, has_cache)
        for num_blocks, has_cache in [(32, True), (10, True), (10, False)]
    ]
    print(
        f"\nThe same texts each time: {'yes' if all(each == texts[0] for each in texts) else 'NO'}"
    )


def run(num_blocks: int, has_cache: bool) -> Texts:
    records: list[StepRecord] = []
    llm = LLM(
        num_gpu_blocks_override=num_blocks,
        max_model_len=60,
        dtype="float32",  # in 16 bits the rounding, and so a token, may depend on the batch
        enable_prefix_caching=has_cache,
        observers=[records.append],
    )
    texts = generate(llm)
    show(records, num_blocks, has_cache)
    return texts


def generate(llm: LLM) -> Texts:
    """Generate for all requests at once. Their first tokens differ, so they share no blocks."""
    prompt = llm.tokenizer.encode(PROMPT)
    for index in range(len(WRITE)):
        params = SamplingParams(temperature=0, max_tokens=MAY_WRITE, ignore_eos=True)
        llm.engine.add_request(str(index), [300 + index, *prompt], params)
    texts: Texts = [[] for _ in WRITE]
    while llm.engine.has_unfinished_requests:
        for output in llm.engine.step():
            index, written = int(output.request_id), output.outputs[0].token_ids
            texts[index] = written[: WRITE[index]]
            if len(written) == WRITE[index] < MAY_WRITE:
                llm.engine.abort(output.request_id)  # what an end-of-text token would do
    return texts


def show(records: list[StepRecord], num_blocks: int, has_cache: bool) -> None:
    computed = sum(each.num_tokens for record in records for each in record.scheduled)
    once = sum(PROMPT_LENGTH + length - 1 for length in WRITE)  # each one's last is not computed
    at_once = sum(len(record.scheduled) for record in records) / len(records)
    in_use = sum(1 - record.num_free_blocks / num_blocks for record in records) / len(records)
    print(
        f"{num_blocks:6}   {'on' if has_cache else 'off':12}   {at_once:7.1f}   {in_use:6.0%}   "
        f"{sum(len(record.preempted) for record in records):6}   {once:6}   "
        f"{computed - once:5}   {len(records):5}"
    )


if __name__ == "__main__":
    main()
