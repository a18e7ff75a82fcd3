"""Two engines that complete prompts on a CPU: this one, and Hugging Face's ``generate``."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

import minimal_vllm
from minimal_vllm import LLM

if TYPE_CHECKING:
    from minimal_vllm.trace.step_record import StepRecord


@dataclass(frozen=True)
class Job:
    """Prompt, and the number of tokens to generate."""

    prompt: list[int]
    num_tokens: int


def make_jobs(
    num_jobs: int,
    vocab_size: int,
    prompt_lengths: tuple[int, int],
    output_lengths: tuple[int, int],
    seed: int,
    spread: str = "uniform",
) -> list[Job]:
    """Draw random prompts of random lengths. Ranges include both ends.

    Args:
        num_jobs: Number of jobs.
        vocab_size: Number of different token ids.
        prompt_lengths: Minimum and maximum length of a prompt.
        output_lengths: Minimum and maximum length of an output.
        seed: Seed of the random numbers.
        spread: Distribution of lengths: uniform, or log-uniform. With log-uniform, lengths of
            16 to 32 are as frequent as lengths of 128 to 256.
    """
    random = Random(seed)

    def draw(shortest: int, longest: int) -> int:
        if spread == "uniform":
            return random.randint(shortest, longest)
        return round(exp(random.uniform(log(shortest), log(longest))))

    return [
        Job(
            prompt=random.choices(range(1, vocab_size), k=draw(*prompt_lengths)),
            num_tokens=draw(*output_lengths),
        )
        for _ in range(num_jobs)
    ]


class Contender(Protocol):
    """Engine that completes jobs greedily and ignores end-of-sequence tokens."""

    name: str

    def complete(self, jobs: Sequence[Job]) -> list[list[int]]:
        """Return the output tokens of each job."""
        ...


def complete_together(api: Any, llm: Any, jobs: Sequence[Job]) -> list[list[int]]:
    """Return the output tokens of each job, computed in one continuous batch.

    Args:
        api: Package with vLLM's Python API: this one or vLLM.
        llm: Instance of its ``LLM``.
        jobs: Jobs to complete.
    """
    params = [
        api.SamplingParams(temperature=0, max_tokens=job.num_tokens, ignore_eos=True)
        for job in jobs
    ]
    prompts = [{"prompt_token_ids": job.prompt} for job in jobs]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


class Ours:
    """This engine: all jobs in one continuous batch."""

    name = "minimal-vllm"

    def __init__(self, folder: Path, dtype: str, **options: Any) -> None:
        self.steps: list[StepRecord] = []
        """Records of the last call's steps."""
        self.llm = LLM(
            str(folder),
            dtype=dtype,
            device="cpu",
            skip_tokenizer_init=True,
            observers=[self.steps.append],
            **options,
        )

    def complete(self, jobs: Sequence[Job]) -> list[list[int]]:
        """Return the output tokens of each job.

        The prefix cache is emptied first, because hits from an earlier call would be unfair.
        """
        self.llm.engine.scheduler.pool.forget_all()
        self.steps.clear()
        return complete_together(minimal_vllm, self.llm, jobs)


class HuggingFace:
    """Transformers' ``generate`` in batches of a fixed size.

    A batch is padded to its longest prompt and computed until its longest output is complete.
    """

    def __init__(self, model: Any, batch_size: int) -> None:
        self.name = "transformers, " + (f"batches of {batch_size}" if batch_size > 1 else "1 by 1")
        self._model = model
        self._batch_size = batch_size

    def complete(self, jobs: Sequence[Job]) -> list[list[int]]:
        """Return the output tokens of each job, computed batch by batch in order."""
        starts = range(0, len(jobs), self._batch_size)
        batches = [self._complete_batch(jobs[start : start + self._batch_size]) for start in starts]
        return [tokens for batch in batches for tokens in batch]

    @torch.inference_mode()
    def _complete_batch(self, jobs: Sequence[Job]) -> list[list[int]]:
        width = max(len(job.prompt) for job in jobs)
        padding = [width - len(job.prompt) for job in jobs]
        tokens = [[0] * pad + job.prompt for pad, job in zip(padding, jobs, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in padding]
        outputs = self._model.generate(
            torch.tensor(tokens),
            attention_mask=torch.tensor(mask),
            max_new_tokens=max(job.num_tokens for job in jobs),
            do_sample=False,
        )
        return [
            row[: job.num_tokens]
            for row, job in zip(outputs[:, width:].tolist(), jobs, strict=True)
        ]


def load_hugging_face(folder: Path, dtype: str) -> Any:
    """Load the model in its best ordinary configuration, without end-of-sequence tokens."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model
