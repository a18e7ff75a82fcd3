"""A conversation of four turns, with and without the prefix cache.

The prompt of each turn is everything said before, and one more sentence.
"""

from typing import NamedTuple

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.trace.step_record import StepRecord

OPENING = (
    "The house stood at the end of the lane, behind a row of old elms, and nobody in the village "
    "could remember a time when there had been a light in its upper windows. One evening in "
    "October, when the rain had stopped at last, a carriage drew up at the gate. "
) * 4
TURNS = [
    "The old captain looked at the sea, and",
    "My dear sister,",
    "The door opened, and",
    "On the next morning",
]
ANSWER = 32


def main() -> None:
    print("                       without the prefix cache       with it")
    print("turn   prompt          computed   first token         computed   first token")
    rows = [run(enabled) for enabled in (False, True)]
    for turn, (without, with_cache) in enumerate(zip(*rows, strict=True), start=1):
        assert without.num_prompt == with_cache.num_prompt
        cells = [f"{row.computed:8} {1e3 * row.seconds:10.1f} ms" for row in (without, with_cache)]
        print(f"{turn:4} {without.num_prompt:8}          {'       '.join(cells)}")
    same = all(without.text == with_cache.text for without, with_cache in zip(*rows, strict=True))
    print(f"\nThe same answers: {'yes' if same else 'NO'}")


class Turn(NamedTuple):
    """The cost of one turn, up to its first token."""

    num_prompt: int
    computed: int
    seconds: float
    text: list[int]


def run(enable_prefix_caching: bool) -> list[Turn]:
    records: list[StepRecord] = []
    llm = LLM(
        device="cpu",
        dtype="float32",
        enable_prefix_caching=enable_prefix_caching,
        observers=[records.append],
    )
    encode = llm.tokenizer.encode
    params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True)
    text, turns = encode(OPENING), []
    for sentence in TURNS:
        text = text + encode(sentence)
        first = len(records)
        (output,) = llm.generate({"prompt_token_ids": text}, params, use_tqdm=False)
        turns.append(make_turn(len(text), records[first], output.outputs[0].token_ids))
        text = text + turns[-1].text
    return turns


def make_turn(num_prompt: int, first_step: StepRecord, answer: list[int]) -> Turn:
    (entry,) = first_step.scheduled
    # Whole blocks are found, and never the whole prompt: its last token's logits are wanted.
    assert entry.start % 16 == 0
    assert entry.start < num_prompt
    seconds = first_step.schedule_seconds + first_step.run_seconds
    return Turn(num_prompt, entry.num_tokens, seconds, answer)


if __name__ == "__main__":
    main()
