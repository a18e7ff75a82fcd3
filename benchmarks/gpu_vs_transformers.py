"""Throughput on a GPU: this engine against Hugging Face transformers, on the same checkpoint.

python -m benchmarks.gpu_vs_transformers [--model qwen3-0.6b] [--num-requests 64]

Requests of ragged lengths are completed greedily in bfloat16, end-of-sequence tokens ignored: by
this engine, by transformers' continuous batching, and by its ``generate`` in one padded batch. They
take turns on one GPU. Where no flash-attention package is installed, transformers' continuous
batching attends densely, over the keys of all requests with a mask: it is slow with many.

In bfloat16 the two greatest logits of random weights are often equal but for rounding, so tokens
are compared only up to the first difference.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.common import RESULTS, print_table, report
from benchmarks.contenders import HuggingFace, Job, make_jobs
from minimal_vllm import LLM, SamplingParams
from minimal_vllm.sim.presets import PRESETS

OUR_SHARE = 0.4
"""Of the GPU's memory: the others live there too."""
THEIR_SHARE = 0.5
"""Of the rest, for the cache of transformers' continuous batching."""
PATIENCE = 300
"""Seconds until the first of its requests must be complete."""
Complete = Callable[[Sequence[Job]], list[list[int]]]

logger = logging.getLogger(__name__)


def write_checkpoint(model: str, folder: Path) -> Any:
    """Random weights in a known shape, on disk, and transformers' model of them on the GPU."""
    shape = dict(PRESETS[model])
    name = shape["architectures"][0].removesuffix("ForCausalLM").lower()
    config = AutoConfig.for_model(name, **shape)
    with torch.device("cuda"):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(folder)
    network.generation_config = GenerationConfig(pad_token_id=0)
    return network.eval()


def ours(folder: Path) -> tuple[LLM, Complete]:
    """All jobs in one continuous batch."""
    llm = LLM(
        str(folder),
        skip_tokenizer_init=True,
        device="cuda",
        gpu_memory_utilization=OUR_SHARE,
        enable_prefix_caching=False,
    )

    def complete(jobs: Sequence[Job]) -> list[list[int]]:
        params = [
            SamplingParams(temperature=0, max_tokens=job.num_tokens, ignore_eos=True)
            for job in jobs
        ]
        outputs = llm.generate([job.prompt for job in jobs], params, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]

    return llm, complete


def continuous_batching(network: Any) -> tuple[Any, Complete]:
    """Transformers' own; its manager is started once, before anything is timed."""
    manager = network.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, pad_token_id=0, max_new_tokens=4096),
        continuous_batching_config=ContinuousBatchingConfig(max_memory_percent=THEIR_SHARE),
    )
    manager.start()

    def complete(jobs: Sequence[Job]) -> list[list[int]]:
        ids = [
            manager.add_request(job.prompt, max_new_tokens=job.num_tokens, eos_token_id=-1)
            for job in jobs
        ]
        results: dict[str, list[int]] = {}
        while len(results) < len(ids):
            result = manager.get_result(timeout=PATIENCE)
            if result is None:
                raise RuntimeError("transformers' continuous batching gave no result")
            if result.is_finished():
                results[result.request_id] = list(result.generated_tokens)
        return [results[each] for each in ids]

    return manager, complete


class PaddedOnGpu(HuggingFace):
    """``generate`` in one padded batch."""

    def complete(self, jobs: Sequence[Job]) -> list[list[int]]:
        """With all tensors on the GPU."""
        with torch.device("cuda"):
            return super().complete(jobs)


def compare(
    contenders: dict[str, Complete], jobs: Sequence[Job], repeats: int
) -> list[dict[str, Any]]:
    """Let the contenders take turns; the first is ours. One that fails is left out, and named."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    tokens: dict[str, list[list[int]]] = {}
    for repeat in range(repeats + 1):  # the first is to warm up
        for name, complete in list(contenders.items()):
            begun = time.perf_counter()
            try:
                tokens[name] = complete(jobs)
            except Exception:
                logger.exception("%s failed", name)
                del contenders[name], seconds[name]
                continue
            if repeat:
                seconds[name].append(time.perf_counter() - begun)
    first = tokens[next(iter(contenders))]
    own = median(seconds[next(iter(contenders))])
    num_tokens = sum(job.num_tokens for job in jobs)
    return [
        {
            "name": name,
            "seconds": each,
            "tokens_per_second": num_tokens / median(each),
            "ours_is_faster_by": median(each) / own,
            "same_tokens": sum(map(_common_length, tokens[name], first)) / num_tokens,
        }
        for name, each in seconds.items()
    ]


def _common_length(tokens: Sequence[int], others: Sequence[int]) -> int:
    same = [mine == other for mine, other in zip(tokens, others, strict=True)]
    return same.index(False) if False in same else len(same)


@click.command()
@click.option("--model", type=click.Choice(list(PRESETS)), default="qwen3-0.6b", show_default=True)
@click.option("--num-requests", default=64, show_default=True)
@click.option("--repeats", default=1, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=RESULTS, help="For the JSON.")
def main(model: str, num_requests: int, repeats: int, folder: Path) -> None:
    """Compare on one GPU."""
    jobs = make_jobs(num_requests, PRESETS[model]["vocab_size"], (16, 512), (16, 256), seed=0)
    with TemporaryDirectory() as checkpoint:
        network = write_checkpoint(model, Path(checkpoint))
        begun = time.perf_counter()
        _, complete = ours(Path(checkpoint))
        print(f"loaded from disk and ready in {time.perf_counter() - begun:.1f} s")
    manager, theirs = continuous_batching(network)
    contenders = {
        "minimal-vllm": complete,
        "transformers, continuous batching": theirs,
        "transformers, generate": PaddedOnGpu(network, num_requests).complete,
    }
    scores = compare(contenders, jobs, repeats)
    manager.stop(block=False)
    print_table(
        f"{model}, {num_requests} requests",
        ["", "seconds", "tokens/s", "ours is faster by", "same tokens"],
        [
            [
                score["name"],
                f"{median(score['seconds']):.2f}",
                f"{score['tokens_per_second']:,.0f}",
                f"{score['ours_is_faster_by']:.1f}x",
                f"{score['same_tokens']:.0%}",
            ]
            for score in scores
        ],
    )
    report(f"gpu_vs_transformers-{model}", {"model": model, "scores": scores}, folder)


if __name__ == "__main__":
    main()
