"""Engines that complete the same prompts on a GPU: this one, vLLM, and transformers in two ways.

Each engine is made from a checkpoint's folder. It is then a function from jobs to their tokens,
which are chosen greedily. End-of-sequence tokens are ignored, and prefix caching is off.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.contenders import HuggingFace, Job, complete_together, load_hugging_face

Complete = Callable[[Sequence[Job]], list[list[int]]]
"""Function that returns the output tokens of each job."""
Make = Callable[[Path, str, Sequence[Job]], Complete]
"""Function that makes an engine from a checkpoint's folder, a device and the coming jobs (for their
lengths)."""

DTYPES = {"cuda": "bfloat16", "cpu": "float32"}
"""Data type of each engine, by device."""
BLOCK_SIZE = 256
"""Default block size of transformers' cache."""
MAX_BATCH_TOKENS = 2048
"""Token budget of a step of transformers' continuous batching."""


def with_the_api_of_vllm(package: str, folder: Path, device: str, jobs: Sequence[Job]) -> Complete:
    """Make an engine with vLLM's Python API: vLLM itself, or this one, which also runs on a CPU."""
    api = import_module(package)
    options = {"device": device} if package == "minimal_vllm" else {}
    llm = api.LLM(
        str(folder),
        dtype=DTYPES[device],
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=_longest(jobs),
        **options,
    )
    return partial(complete_together, api, llm)


def continuous_batching(folder: Path, device: str, jobs: Sequence[Job]) -> Complete:
    """Make transformers' own continuous batching.

    Without a package for flash attention, its attention is dense: all tokens of a step attend to
    the whole cache under a mask. The cache therefore has just enough room for these jobs.
    """
    network = load_hugging_face(folder, DTYPES[device]).to(device)
    num_blocks = sum(-(-(len(job.prompt) + job.num_tokens) // BLOCK_SIZE) for job in jobs)
    manager = network.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=num_blocks + 1,
            max_batch_tokens=MAX_BATCH_TOKENS,
            allow_block_sharing=False,
        ),
    )
    manager.start()

    def complete(jobs: Sequence[Job]) -> list[list[int]]:
        ids = [
            manager.add_request(job.prompt, max_new_tokens=job.num_tokens, eos_token_id=-1)
            for job in jobs
        ]
        results: dict[str, list[int]] = {}
        while len(results) < len(ids):
            result = manager.get_result(timeout=1)
            if result is None:
                if not manager.is_running():
                    raise RuntimeError("the thread of transformers' continuous batching ended")
            elif result.error:
                raise RuntimeError(f"transformers' continuous batching: {result.error}")
            elif result.is_finished():
                results[result.request_id] = list(result.generated_tokens)
        return [results[each] for each in ids]

    return complete


def generate(folder: Path, device: str, jobs: Sequence[Job]) -> Complete:
    """Make transformers' ``generate``: all jobs in one padded batch until the longest is done."""
    padded = HuggingFace(load_hugging_face(folder, DTYPES[device]).to(device), len(jobs))

    def complete(jobs: Sequence[Job]) -> list[list[int]]:
        with torch.device(device):
            return padded.complete(jobs)

    return complete


ENGINES: dict[str, Make] = {
    "minimal-vllm": partial(with_the_api_of_vllm, "minimal_vllm"),
    "vLLM": partial(with_the_api_of_vllm, "vllm"),
    "transformers, continuous batching": continuous_batching,
    "transformers, generate": generate,
}
"""Functions that make the engines, by name. The first is this engine."""


def installed() -> list[str]:
    """Return the names of the engines that are installed."""
    return [name for name in ENGINES if name != "vLLM" or find_spec("vllm")]


def _longest(jobs: Sequence[Job]) -> int:
    return max(len(job.prompt) + job.num_tokens for job in jobs) + 1
