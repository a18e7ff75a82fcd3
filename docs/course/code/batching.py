"""The same requests in static groups and in continuous batches, through the engine.

A static batch is a group of requests that begins together; the next group begins when the last of
them is done. The chart has a row for each request and a column for each step.
"""

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.trace.step_record import StepRecord

PROMPT = "The old captain looked at the sea, and"
AT_ONCE = 4
NUM_NEW = {"A": 30, "B": 6, "C": 14, "D": 9, "E": 26, "F": 4, "G": 11, "H": 8, "I": 17, "J": 5}

Texts = dict[str, list[int]]


def main() -> None:
    records: list[StepRecord] = []
    llm = LLM(
        device="cpu",
        dtype="float32",
        max_num_seqs=AT_ONCE,
        enable_prefix_caching=False,
        observers=[records.append],
    )
    serve(llm, "A")  # the first steps of a process are slow

    del records[:]
    texts: Texts = {}
    names = list(NUM_NEW)
    for first in range(0, len(names), AT_ONCE):
        texts |= serve(llm, *names[first : first + AT_ONCE])
    show(f"static groups of {AT_ONCE}", records)

    del records[:]
    same = serve(llm, *names) == texts
    show(f"continuous, at most {AT_ONCE}", records)
    print(f"The same texts: {'yes' if same else 'NO'}")


def serve(llm: LLM, *names: str) -> Texts:
    """Add these requests, and step until all have ended."""
    prompt = llm.tokenizer.encode(PROMPT)
    for name in names:
        params = SamplingParams(seed=ord(name), max_tokens=NUM_NEW[name], ignore_eos=True)
        llm.engine.add_request(name, prompt, params)
    texts: Texts = {}
    while llm.engine.has_unfinished_requests:
        for output in llm.engine.step():
            texts[output.request_id] = list(output.outputs[0].token_ids)
    return texts


def show(how: str, records: list[StepRecord]) -> None:
    steps_of: dict[str, list[int]] = {name: [] for name in NUM_NEW}
    for step, record in enumerate(records):
        for entry in record.scheduled:
            steps_of[entry.request_id].append(step)
    for name, steps in steps_of.items():
        print(f"   {name} {' ' * steps[0]}█{'─' * (len(steps) - 1)}")
    seconds = sum(record.run_seconds for record in records)
    waits = [steps[0] for steps in steps_of.values()]
    num_tokens = sum(NUM_NEW.values())
    print(
        f"{how}: {len(records)} steps, {seconds:.2f} s\n"
        f"{num_tokens / len(records):.1f} of {AT_ONCE} places used, "
        f"{sum(waits) / len(waits):.1f} steps until a request begins\n"
    )


if __name__ == "__main__":
    main()
