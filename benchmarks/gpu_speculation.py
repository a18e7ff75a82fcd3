"""What guesses cost and bring on a GPU.

python -m benchmarks.gpu_speculation [--model qwen3-8b] [--requests 1 --requests 16]

The model counts (see ``counting``), so what a right guess is, is known.

- *The cost of a step*: all requests compute the same number of guesses, all of which are right.
  They are made on the CPU, which waits for each step's tokens, or on the GPU, ahead.
- *A guesser of known acceptance*: each guess is wrong with a given probability. The engine decides
  how many guesses are made. The plain engine is another one, without speculation. With guesses that
  are all wrong, the difference is what it costs to find out.
- *A draft model*: one of the shape of ``--draft``, which counts too and is wrong as often.
- *Lookup in a real file*: the tokens of a file take the place of numbers, so that n-gram lookup
  guesses in its text, of which the first half is the prompt and the second half the output.
"""

import gc
import json
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
import torch

from benchmarks.common import RESULTS, print_table, report
from benchmarks.counting import MAX_GUESSES, Counting, let_count
from benchmarks.gpu_workloads import build
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.llm import LLM
from minimal_vllm.runner.shapes import MAX_PLACES
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.text.tokenizer import Tokenizer
from minimal_vllm_lab.sim.presets import PRESETS

if TYPE_CHECKING:
    from minimal_vllm.outputs import RequestOutput

ROOT = Path(__file__).parents[1]
FILES = {
    "code": ROOT / "src/minimal_vllm/attention/kernels/prefill.py",
    "prose": ROOT / "README.md",
}
PROMPT_LENGTH = 512
REPEATS = 3
MAX_IN_FILE = 1200
"""Maximum number of a file's tokens; half of them are the prompt, half the output."""
OPTIONS = {"max_model_len": 4096, "num_gpu_blocks_override": 16_000}
DRAFT_BLOCKS = 2_000
"""Number of KV blocks where there is a draft model; only few requests run there."""


# ---- runs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run of some requests."""

    milliseconds: float
    """Time per step of the requests' outputs, prompts excluded."""
    tokens_per_second: float
    tokens_per_step: float
    """Number of tokens of each request in a step."""
    are_right: bool
    """Whether all outputs are what they should be."""


def run(llm: LLM, num_requests: int, num_tokens: int, length: int = PROMPT_LENGTH) -> Run:
    """Generate once, from the first step in which all requests decode to the first end."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    for index in range(num_requests):
        first = 0 if Counting.tokens else 1000 + 397 * index
        llm.engine.add_request(str(index), list(range(first, first + length)), params)
    outputs: dict[str, RequestOutput] = {}
    gc.collect()  # garbage of an earlier run must not be collected during this one

    def step() -> int:
        outputs.update((each.request_id, each) for each in llm.engine.step())
        return sum(len(each.outputs[0].token_ids) for each in outputs.values())

    while len(outputs) < num_requests:
        step()
    before, begun, steps, done = step(), time.perf_counter(), 0, 0
    while not any(each.finished for each in outputs.values()):
        done = step()
        steps += 1
    seconds = time.perf_counter() - begun
    while llm.engine.has_unfinished_requests:
        step()
    are_right = all(
        each.outputs[0].token_ids
        == list(range(each.prompt_token_ids[-1] + 1, each.prompt_token_ids[-1] + 1 + num_tokens))
        for each in outputs.values()
    )
    tokens = done - before
    return Run(1e3 * seconds / steps, tokens / seconds, tokens / steps / num_requests, are_right)


def best(
    llm: LLM,
    num_requests: int,
    num_tokens: int,
    length: int = PROMPT_LENGTH,
    repeats: int = REPEATS,
) -> Run:
    """Return the median of some runs, by throughput, after one that is not counted.

    All but that one find their prompts in the prefix cache.
    """
    runs = [run(llm, num_requests, num_tokens, length) for _ in range(1 + repeats)][1:]
    return sorted(runs, key=lambda each: each.tokens_per_second)[repeats // 2]


@contextmanager
def all_guesses(llm: LLM) -> Iterator[None]:
    """Let every proposed guess be computed, whether it pays or not."""
    scheduler: Any = llm.engine.scheduler
    scheduler.count_guesses = lambda _plan, _entries, guesses: [len(each) for each in guesses]
    try:
        yield
    finally:
        del scheduler.count_guesses


def measure_costs(
    llm: LLM, requests: Sequence[int], num_tokens: int, most: int = MAX_GUESSES
) -> list[dict[str, Any]]:
    """Measure steps with each number of guesses, all of which are right."""
    rows = []
    scheduler: Any = llm.engine.scheduler
    Counting.right = 1.0
    for num_requests in requests:
        for count in range(most + 1):
            scheduler.max_guesses = count
            with all_guesses(llm):
                found = best(llm, num_requests, num_tokens * (1 + count))
            rows.append({"requests": num_requests, "guesses": count, **asdict(found)})
            print(rows[-1], flush=True)
    scheduler.max_guesses = most
    return rows


def measure_guessing(
    llm: LLM, plain: LLM, requests: Sequence[int], num_tokens: int, right: float, most: int
) -> list[dict[str, Any]]:
    """Compare the engine with a plain one; the guesser is right with some probability."""
    Counting.right, Counting.most = right, most
    return compare(llm, plain, requests, num_tokens)


def compare(llm: LLM, plain: LLM, requests: Sequence[int], num_tokens: int) -> list[dict[str, Any]]:
    """Compare both engines at some numbers of requests."""
    rows = []
    for num_requests in requests:
        without, with_guesses = (best(each, num_requests, num_tokens) for each in (plain, llm))
        rows.append({"requests": num_requests, **compared(without, with_guesses)})
        print(rows[-1], flush=True)
    return rows


def compared(without: Run, with_guesses: Run) -> dict[str, Any]:
    """Return two runs, and how much faster the second is."""
    return {
        "plain": asdict(without),
        "guessing": asdict(with_guesses),
        "speedup": with_guesses.tokens_per_second / without.tokens_per_second,
    }


def measure_draft(
    model: str, draft: str, plain: LLM, requests: Sequence[int], num_tokens: int, right: float
) -> list[dict[str, Any]]:
    """Compare the engine with a draft model with a plain one."""
    shape = {**PRESETS[draft], "vocab_size": PRESETS[model]["vocab_size"]}
    shape["tie_word_embeddings"] = False
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape))
        config = {"model": folder, "num_speculative_tokens": MAX_GUESSES}
        blocks = {"num_gpu_blocks_override": DRAFT_BLOCKS}
        llm = build(PRESETS[model], {**OPTIONS, **blocks, "speculative_config": config})
    runner: Any = llm.engine._runner
    let_count(llm.built.model.decoder)
    let_count(runner._draft._draft.model.decoder, right)
    return compare(llm, plain, requests, num_tokens)


def measure_files(llm: LLM, plain: LLM) -> list[dict[str, Any]]:
    """Compare both engines on one request, whose output is the second half of a file."""
    rows = []
    tokenizer = Tokenizer(DEMO_MODEL_DIR)
    Counting.most = MAX_GUESSES
    for name, path in FILES.items():
        Counting.tokens = array("i", tokenizer.encode(path.read_text())[:MAX_IN_FILE])
        half = len(Counting.tokens) // 2
        without, with_guesses = (best(each, 1, half - 1, half, repeats=1) for each in (plain, llm))
        rows.append({"file": name, **compared(without, with_guesses)})
        print(rows[-1], flush=True)
    Counting.tokens = array("i")
    return rows


# ---- the command --------------------------------------------------------------------------------


def print_costs(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the cost of guesses, relative to steps without any."""
    plain = {row["requests"]: row["milliseconds"] for row in rows if not row["guesses"]}
    print_table(
        title,
        ["requests", "guesses", "ms per step", "relative", "tokens per step", "all right"],
        [
            [
                f"{row['requests']}",
                f"{row['guesses']}",
                f"{row['milliseconds']:.2f}",
                f"{row['milliseconds'] / plain[row['requests']]:.2f}x",
                f"{row['tokens_per_step']:.2f}",
                f"{row['are_right']}",
            ]
            for row in rows
        ],
    )


def print_speedups(title: str, key: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print what guesses bring."""
    print_table(
        title,
        [key, "plain tokens/s", "guessing", "speedup", "tokens per step", "ms per step", "right"],
        [
            [
                f"{row[key]}",
                f"{row['plain']['tokens_per_second']:,.0f}",
                f"{row['guessing']['tokens_per_second']:,.0f}",
                f"{row['speedup']:.2f}x",
                f"{row['guessing']['tokens_per_step']:.2f}",
                f"{row['plain']['milliseconds']:.2f} → {row['guessing']['milliseconds']:.2f}",
                f"{row['plain']['are_right'] and row['guessing']['are_right']}",
            ]
            for row in rows
        ],
    )


@click.command()
@click.option("--model", type=click.Choice(list(PRESETS)), default="qwen3-8b", show_default=True)
@click.option("--draft", type=click.Choice(list(PRESETS)), default="qwen3-0.6b", show_default=True)
@click.option("--requests", type=click.IntRange(1), multiple=True, default=(1, 16, 256))
@click.option("--right", default=0.8, show_default=True, help="Share of right guesses.")
@click.option("--guesses", default=4, show_default=True, help="Maximum number of guesses.")
@click.option("--tokens", default=128, show_default=True, help="Output tokens per request.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=RESULTS, help="Folder for the results."
)
def main(
    model: str,
    draft: str,
    requests: tuple[int, ...],
    right: float,
    guesses: int,
    tokens: int,
    folder: Path,
) -> None:
    """Measure guesses with one model."""
    from benchmarks.counting_on_gpu import let_count_on_gpu  # needs Triton

    speculative = {"method": "benchmarks.counting:Counting", "num_speculative_tokens": MAX_GUESSES}
    llm = build(PRESETS[model], {**OPTIONS, "speculative_config": speculative})
    let_count(llm.built.model.decoder)
    few = [number for number in requests if number * (1 + MAX_GUESSES) <= MAX_PLACES]
    costs = measure_costs(llm, few, tokens // 2)
    plain = build(PRESETS[model], OPTIONS)
    let_count(plain.built.model.decoder)
    speedups = measure_guessing(llm, plain, requests, tokens * 2, right, guesses)
    wrong = measure_guessing(llm, plain, few, tokens * 2, 0.0, guesses)
    files = measure_files(llm, plain)
    let_count_on_gpu(llm)
    costs_ahead = measure_costs(llm, few, tokens // 2)
    drafted = measure_draft(model, draft, plain, few, tokens * 2, right)
    print_costs("Steps in which all requests have guesses, all right", costs)
    print_costs("The same, with guesses that are made on the GPU", costs_ahead)
    print_speedups(f"Guesses that are right with probability {right}", "requests", speedups)
    print_speedups("Guesses that are always wrong", "requests", wrong)
    print_speedups("Lookup in a file", "file", files)
    print_speedups(f"A draft model of the shape {draft}", "requests", drafted)
    results = {"model": model, "gpu": torch.cuda.get_device_name(), "right": right}
    results |= {"guesses": guesses, "costs": costs, "speedups": speedups, "files": files}
    results |= {"costs_ahead": costs_ahead}
    results |= {"draft": draft, "drafted": drafted, "wrong": wrong}
    report(f"gpu_speculation-{model}", results, folder)


if __name__ == "__main__":
    main()
