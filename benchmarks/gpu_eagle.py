"""What the guesses of an EAGLE-3 head cost and bring on a GPU.

python -m benchmarks.gpu_eagle [--model qwen3-8b] [--requests 1 --requests 16]

Model and head count (see ``counting``), so what a right guess is, is known. The head has the shape
of the published ones for a model of this size, and a vocabulary of 32,000 tokens.

- *The cost of a step*: all requests have the same number of guesses, all of which are right.
- *A head of known acceptance*: each guess is wrong with a given probability, and the engine decides
  how many are made. With guesses that are all wrong, the difference to the plain engine is what it
  costs to have a head and to find out.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch

from benchmarks.common import RESULTS, report
from benchmarks.counting import MAX_GUESSES, let_count, let_head_count
from benchmarks.gpu_speculation import (
    DRAFT_BLOCKS,
    OPTIONS,
    compare,
    measure_costs,
    print_costs,
    print_speedups,
)
from benchmarks.gpu_workloads import build
from minimal_vllm.llm import LLM
from minimal_vllm.model.eagle import EagleHead
from minimal_vllm_lab.sim.presets import PRESETS

DRAFT_VOCAB_SIZE = 32_000
KEPT = (
    *("vocab_size", "hidden_size", "intermediate_size", "hidden_act", "rms_norm_eps"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
)
"""Entries of a model's config.json that its head shares."""


def head_shape(model: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of a head for a model."""
    return {
        **{key: model[key] for key in KEPT if key in model},
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": min(DRAFT_VOCAB_SIZE, model["vocab_size"]),
        "norm_before_residual": True,
        "torch_dtype": model.get("dtype", "bfloat16"),
    }


def head_of(llm: LLM) -> EagleHead:
    """Return the head that guesses for an engine."""
    draft: Any = llm.engine._runner._draft  # type: ignore[attr-defined]
    head: EagleHead = getattr(draft, "_draft", draft).head
    return head


def build_with_head(shape: dict[str, Any], options: dict[str, Any], right: float) -> LLM:
    """Build an engine with a model that counts, and a head that is right with a probability."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(head_shape(shape)))
        config = {"method": "eagle3", "model": folder, "num_speculative_tokens": MAX_GUESSES}
        llm = build(shape, {**options, "speculative_config": config})
    let_count(llm.built.model.decoder)
    let_head_count(head_of(llm), llm.built.model.decoder, right)
    return llm


@click.command()
@click.option("--model", type=click.Choice(list(PRESETS)), default="qwen3-8b", show_default=True)
@click.option("--requests", type=click.IntRange(1), multiple=True, default=(1, 16))
@click.option("--right", default=0.8, show_default=True, help="Share of right guesses.")
@click.option("--tokens", default=128, show_default=True, help="Output tokens per request.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=RESULTS, help="Folder for the results."
)
def main(model: str, requests: tuple[int, ...], right: float, tokens: int, folder: Path) -> None:
    """Measure a head with one model."""
    options = {**OPTIONS, "num_gpu_blocks_override": DRAFT_BLOCKS}
    llm = build_with_head(PRESETS[model], options, 1.0)
    costs = measure_costs(llm, requests, tokens // 2)
    plain = build(PRESETS[model], options)
    let_count(plain.built.model.decoder)
    let_head_count(head_of(llm), llm.built.model.decoder, right)
    speedups = compare(llm, plain, requests, tokens * 2)
    let_head_count(head_of(llm), llm.built.model.decoder, 0.0)
    wrong = compare(llm, plain, requests, tokens * 2)
    print_costs("Steps in which all requests have guesses, all right", costs)
    print_speedups(f"Guesses that are right with probability {right}", "requests", speedups)
    print_speedups("Guesses that are always wrong", "requests", wrong)
    results = {"model": model, "gpu": torch.cuda.get_device_name(), "right": right}
    results |= {"costs": costs, "speedups": speedups, "wrong": wrong}
    report(f"gpu_eagle-{model}", results, folder)


if __name__ == "__main__":
    main()
