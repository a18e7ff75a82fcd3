"""Five workloads on a GPU, beside what vLLM 0.24.0 needed for the same on one H200.

Random weights in the shapes of Qwen3 0.6B and 8B, in bfloat16; random prompts, exact output
lengths, the end-of-text token ignored. Each workload runs twice, the second time is told: the first
also prepares what is compiled or planned by size.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import click

from minimal_vllm.llm import LLM
from minimal_vllm.sampling_params import SamplingParams

Workload = list[tuple[list[int], int]]
"""Prompts, each with how many tokens follow it."""

COMMON = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "head_dim": 128,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
SHAPES: dict[str, dict[str, Any]] = {
    "0.6b": {
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "intermediate_size": 3072,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "intermediate_size": 12288,
        "tie_word_embeddings": False,
    },
}
VLLM_SECONDS = {
    "0.6b": {
        "mixed256": 5.96,
        "latency1": 0.879,
        "prefix256": 1.11,
        "long32": 3.17,
        "prefill64": 0.762,
    },
    "8b": {
        "mixed256": 14.5,
        "latency1": 2.64,
        "prefix256": 2.09,
        "long32": 10.6,
        "prefill64": 6.47,
    },
}


def random_tokens(random: Random, count: int) -> list[int]:
    return [random.randint(0, 10000) for _ in range(count)]


def mixed256() -> Workload:
    random = Random(0)
    prompts = [random_tokens(random, random.randint(100, 1024)) for _ in range(256)]
    return [(prompt, random.randint(100, 1024)) for prompt in prompts]


def latency1() -> Workload:
    return [(random_tokens(Random(2), 128), 512)]


def prefix256() -> Workload:
    random = Random(1)
    head = random_tokens(random, 2048)
    return [(head + random_tokens(random, 64), 64) for _ in range(256)]


def long32() -> Workload:
    random = Random(3)
    return [(random_tokens(random, 8192), 256) for _ in range(32)]


def prefill64() -> Workload:
    random = Random(4)
    return [(random_tokens(random, 4096), 1) for _ in range(64)]


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "mixed256": mixed256,
    "latency1": latency1,
    "prefix256": prefix256,
    "long32": long32,
    "prefill64": prefill64,
}


def run_once(llm: LLM, workload: Workload, temperature: float) -> float:
    """Seconds from the prompts to the last token; nothing is cached at the beginning."""
    llm.engine.reset()
    prompts = [prompt for prompt, _ in workload]
    params = [
        SamplingParams(temperature=temperature, max_tokens=count, ignore_eos=True)
        for _, count in workload
    ]
    begun = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begun
    for output, (_, count) in zip(outputs, workload, strict=True):
        if len(output.outputs[0].token_ids) != count:
            raise RuntimeError(f"a request ended early: {output.outputs[0].stop_reason}")
    return seconds


def build(shape: str, options: dict[str, Any]) -> LLM:
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(COMMON | SHAPES[shape]))
        return LLM(folder, load_format="dummy", skip_tokenizer_init=True, device="cuda", **options)


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="0.6b", show_default=True)
@click.option("--workload", "names", type=click.Choice(list(WORKLOADS)), multiple=True)
@click.option("--temperature", default=0.6, show_default=True)
@click.option("--without", type=click.Choice(["graphs", "async", "cascade", "kernels"]))
@click.option("--output", type=click.Path(path_type=Path), help="Write the numbers as JSON here.")
def main(
    shape: str, names: tuple[str, ...], temperature: float, without: str | None, output: Path | None
) -> None:
    """Measure the workloads (all, unless some are named) in one shape."""
    switched_off: dict[str | None, dict[str, Any]] = {
        None: {},
        "graphs": {"enforce_eager": True},
        "async": {"async_scheduling": False},
        "cascade": {"cascade_attention": False},
        "kernels": {"attention_backend": "tiled"},
    }
    llm = build(shape, switched_off[without])
    results = {}
    for name in names or WORKLOADS:
        workload = WORKLOADS[name]()
        seconds = [run_once(llm, workload, temperature) for _ in range(2)][-1]
        theirs = VLLM_SECONDS[shape][name]
        results[name] = {"seconds": seconds, "vllm_seconds": theirs, "ratio": theirs / seconds}
        ratio = f"{theirs / seconds:.2f}"
        print(f"{shape:5}{name:10}{seconds:8.3f} s   vLLM {theirs:6.3f} s   ratio {ratio}")
    if output:
        output.write_text(json.dumps({"shape": shape, "without": without, "results": results}))


if __name__ == "__main__":
    main()
