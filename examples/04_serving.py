"""Serving: load a model once, then stream text to requests that come and go.

A server owns one engine and calls ``step`` again and again. Between two steps, requests may be
added or aborted. Each step returns the new text of every request that has some. This script shows,
measured in this run:

1. what is decided at load time: the device, and the number of KV blocks,
2. streaming: requests join and leave while others run, and one is aborted,
3. one stream compared with eight: time to the first token, and tokens per second,
4. that a request with a seed gets the same tokens alone and in a large batch.

Read next: llm.py, engine/build.py, engine/engine.py, engine/output_processor.py.
Run: python examples/04_serving.py
"""

import time
from statistics import median

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.outputs import OutputKind
from minimal_vllm.trace.step_record import StepRecord

PROMPTS = {
    "A": "It was a dark and stormy night, and",
    "B": "The old captain looked at the sea, and",
    "C": "My dear sister,",
    "D": "The door opened, and a young lady in grey came in.",
}


def main() -> None:
    records: list[StepRecord] = []
    begun = time.perf_counter()
    # With 16 bits, rounding depends on the batch, and may change a token.
    llm = LLM(dtype="float32", observers=[records.append])
    show_loading(llm, time.perf_counter() - begun)
    show_streaming(llm)
    show_batching(llm, records)
    show_seeds(llm)


def show_loading(llm: LLM, seconds: float) -> None:
    built, config = llm.built, llm.built.files.config
    print(f"1. Loaded in {seconds:.1f} s\n")
    print(f"   model     {config.architecture}, {config.num_parameters:,} parameters")
    print(f"   runs on   {built.device}, in {str(built.dtype).removeprefix('torch.')}")
    print(f"   KV cache  {built.num_blocks:,} blocks of {llm.config.block_size} tokens: ", end="")
    print("as many as fit into the memory that the weights leave\n")


def show_streaming(llm: LLM) -> None:
    """Run four requests: A and B from the start, C and D join later, and B is aborted."""
    print("2. Requests come and go between steps\n")
    params = {
        "A": SamplingParams(seed=1, max_tokens=20),
        "B": SamplingParams(seed=2, max_tokens=100),
        "C": SamplingParams(seed=3, max_tokens=100, stop="."),
        "D": SamplingParams(seed=4, max_tokens=12),
    }
    joining = {0: "AB", 5: "C", 12: "D"}
    pieces: dict[str, list[str]] = {name: [] for name in PROMPTS}
    step = 0
    while step == 0 or llm.engine.has_unfinished_requests:
        for name in joining.get(step, ""):
            token_ids = llm.tokenizer.encode(PROMPTS[name])
            llm.engine.add_request(name, token_ids, params[name], output_kind=OutputKind.DELTA)
            print(f"   step {step:2}  {name} joins")
        aborted = [llm.engine.abort("B")] if step == 16 else []
        for output in [*filter(None, aborted), *llm.engine.step()]:
            completion = output.outputs[0]
            pieces[output.request_id].append(completion.text)
            if completion.finish_reason:
                print(f"   step {step:2}  {output.request_id} ends: {completion.finish_reason}")
        step += 1
    print("\n   Prompts, and after each ▸ the text that a step streamed to the client:\n")
    for name, texts in pieces.items():
        print(f"   {name}  {PROMPTS[name]}▸{'▸'.join(filter(None, texts))}".replace("\n", "⏎"))
    print()


def show_batching(llm: LLM, records: list[StepRecord]) -> None:
    print("3. One stream against eight, 64 tokens each\n")
    prompt = llm.tokenizer.encode(PROMPTS["A"])
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    print("   streams  first token  tokens/s  per stream  time between tokens")
    for num_streams in (1, 8):
        first_step, begun = len(records), time.monotonic()
        # Each prompt starts with a different token, so that no cached prefix is found.
        prompts = [[100 + 10 * num_streams + index, *prompt] for index in range(num_streams)]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.monotonic() - begun
        firsts = [each.metrics.first_token_time or 0 for each in outputs if each.metrics]
        speed = 64 * num_streams / seconds
        steps = median(seconds_of(record) for record in records[first_step + 1 :])
        print(
            f"   {num_streams:7}  {1e3 * (max(firsts) - begun):8.1f} ms  {speed:8,.0f}  "
            f"{speed / num_streams:10,.0f}  {1e3 * steps:16.1f} ms"
        )
    last = records[-1]
    print(f"\n   The last step of eight: schedule {1e3 * last.schedule_seconds:.2f} ms, ", end="")
    print(f"run {1e3 * last.run_seconds:.2f} ms, update {1e3 * last.update_seconds:.2f} ms.")
    print(
        "   A batch of eight reads each weight once, like a batch of one. So batching is cheap.\n"
    )


def seconds_of(record: StepRecord) -> float:
    return record.schedule_seconds + record.run_seconds + record.update_seconds


def show_seeds(llm: LLM) -> None:
    params = SamplingParams(seed=7, max_tokens=24)
    alone = llm.generate(PROMPTS["C"], params, use_tqdm=False)[0]
    batch = llm.generate([*PROMPTS.values()] * 4, params, use_tqdm=False)
    same = batch[2].outputs[0].token_ids == alone.outputs[0].token_ids
    print(
        f"4. Seed 7, alone and in a batch of {len(batch)}: equal tokens: {'yes' if same else 'NO'}"
    )
    print(f"   {PROMPTS['C']}▸{alone.outputs[0].text}".replace("\n", "⏎"))


if __name__ == "__main__":
    main()
