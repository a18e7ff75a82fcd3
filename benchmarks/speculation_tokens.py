"""Tokens per step of the built-in model with its trained guessers, at four guesses in each step.

python -m benchmarks.speculation_tokens

The texts are those of the view's demo traffic. Guesses cost nothing in these engines, so that each
step has as many as it may: what is counted is how often they are right.
"""

from typing import Any
from unittest.mock import patch

from benchmarks.common import print_table
from minimal_vllm import LLM, SamplingParams
from minimal_vllm.speculation import allowance, pace
from minimal_vllm.trace.step_record import StepRecord
from minimal_vllm_lab.view.demo_requests import read_passages

NUM_WORDS, NUM_TOKENS = 30, 64
"""Words of each prompt, and tokens of each output."""
NUM_GUESSES = 4
TEMPERATURES = (0.0, 0.8)
GUESSERS: dict[str, dict[str, Any]] = {
    "draft model": {"method": "draft_model"},
    "EAGLE-3 head": {"method": "eagle3"},
}


class Count:
    """Observer of an engine: counts requests' steps with guesses, and the tokens of these steps."""

    def __init__(self) -> None:
        self.steps = self.tokens = 0

    def __call__(self, record: StepRecord) -> None:
        """Count a step."""
        for entry in record.scheduled:
            if entry.num_guesses:
                self.steps += 1
                self.tokens += len(entry.sampled_tokens)


def prompts() -> list[str]:
    """Return the beginnings of all passages."""
    return [" ".join(each.split()[:NUM_WORDS]) for each in read_passages()]


def tokens_per_step(guesser: dict[str, Any], temperature: float) -> float:
    """Return the mean number of tokens of a request's steps with guesses."""
    count = Count()
    llm = LLM(
        dtype="float32",
        device="cpu",
        num_gpu_blocks_override=512,
        observers=[count],
        speculative_config={**guesser, "num_speculative_tokens": NUM_GUESSES},
    )
    params = SamplingParams(temperature=temperature, seed=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    llm.generate(prompts(), params, use_tqdm=False)
    return count.tokens / count.steps


def main() -> None:
    free = patch.object(pace.CostMeter, "_fit", lambda _: pace.Costs(1.0, 0.0))
    with free, patch.object(allowance.Allowance, "is_used_up", False):
        rows = [
            [name, *(f"{tokens_per_step(each, hot):.2f}" for hot in TEMPERATURES)]
            for name, each in GUESSERS.items()
        ]
    header = ["guesser", *(f"temperature {each}" for each in TEMPERATURES)]
    print_table("Tokens per step", header, rows)


if __name__ == "__main__":
    main()
