"""What guessing is worth: tokens per step, and time per token, with and without it.

python docs/course/code/speculation.py [MODEL]
"""

import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.speculation.pace import Costs, choose_counts
from minimal_vllm.trace.step_record import StepRecord

NUM_TOKENS = 64
NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 4,
    "prompt_lookup_min": 2,
    "prompt_lookup_max": 5,
}
DRAFT = {"method": "draft_model", "num_speculative_tokens": 4}
HEAD = {"method": "eagle3", "num_speculative_tokens": 4}
GUESSERS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "n-gram": NGRAM,
    "draft": DRAFT,
    "EAGLE-3": HEAD,
}
STORY = "It was a dark and stormy night, and"
LIST = "Monday: rain. Tuesday: sun. Wednesday: rain. Thursday: sun. Friday: rain. Monday: rain. Tue"
CODE = """Write this function again, with the name area instead of size, and change nothing else.

def size(width, height):
    if width < 0 or height < 0:
        raise ValueError("width and height must not be negative")
    return width * height

"""
RECORDS = """Repeat this list.

[{"name": "Anna", "age": 31, "city": "Oslo"}, {"name": "Bert", "age": 45, "city": "Rome"},
{"name": "Carl", "age": 27, "city": "Bonn"}]
"""


@dataclass
class Count:
    """What happened in the steps of a run."""

    steps: int = 0
    guessed: int = 0
    right: int = 0

    def __call__(self, record: StepRecord) -> None:
        """Count a step."""
        self.steps += 1
        for entry in record.scheduled:
            self.guessed += entry.num_guesses
            self.right += max(len(entry.sampled_tokens) - 1, 0)


def main(model: str | None) -> None:
    torch.set_num_threads(1)
    show_formula()
    print("\n2. One request, up to 4 guesses a step")
    print("   guesser   text   temperature   tokens per step   guesses right   time per token")
    if model is None:
        engines = {name: Watched(None, config) for name, config in GUESSERS.items()}
        show_runs(engines, "prose", STORY, 0.0)
        show_runs(engines, "prose", STORY, 0.8)
        show_runs(engines, "a list", LIST, 0.0)
    else:
        engines = {name: Watched(model, GUESSERS[name]) for name in ("none", "n-gram")}
        for text, prompt in {"story": "Tell me a story.", "code": CODE, "JSON": RECORDS}.items():
            show_runs(engines, text, [{"role": "user", "content": prompt}], 0.0)


def show_formula() -> None:
    """Choose the number of guesses from the share of right ones and the cost of a pass."""
    print("1. The best number of guesses, for a step that costs 20 rows")
    print("   right   draft costs nothing   a tenth of a step   a third")
    for rate in (0.3, 0.5, 0.7, 0.9):
        counts = [best(rate, cost) for cost in (0, 2, 7)]
        print(f"   {rate:5}   {counts[0]:19}   {counts[1]:17}   {counts[2]:7}")


def best(rate: float, cost: float) -> int:
    """Return the best number of guesses with passes of this cost."""
    (count,) = choose_counts([rate], [8], 1, Costs(20, 1, cost), in_passes=True)
    return count


class Watched:
    """An engine with a guesser, or with none, and the count of its steps."""

    def __init__(self, model: str | None, config: dict[str, Any] | None) -> None:
        self.count = Count()
        self._llm = LLM(
            model,
            num_gpu_blocks_override=256,
            max_model_len=2048,
            observers=[self._watch],
            speculative_config=config,
        )

    def _watch(self, record: StepRecord) -> None:
        self.count(record)

    def run(self, prompt: str | list[dict[str, str]], params: SamplingParams) -> float:
        """Generate a text, or answer a chat; return the CPU time in seconds."""
        self.count = Count()
        began = time.thread_time()
        if isinstance(prompt, str):
            self._llm.generate(prompt, params, use_tqdm=False)
        else:
            self._llm.chat(prompt, params, use_tqdm=False)
        return time.thread_time() - began


def show_runs(
    engines: dict[str, Watched], text: str, prompt: str | list[dict[str, str]], temperature: float
) -> None:
    """Generate a text with each guesser, and compare with none."""
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=NUM_TOKENS, ignore_eos=True)
    alone = 0.0
    for name, engine in engines.items():
        engine.run(prompt, params)  # to learn what a step costs here
        seconds, count = engine.run(prompt, params), engine.count
        alone = alone or seconds
        share = 100 * count.right / max(count.guessed, 1)
        print(
            f"   {name:7}   {text:6}   {temperature:11}   {NUM_TOKENS / count.steps:15.2f}"
            f"   {share:11.0f} %   {seconds / alone:12.2f} x"
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
