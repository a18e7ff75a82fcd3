"""Workloads of the simulator, adapted to a real engine's vocabulary and maximum length."""

from array import array
from dataclasses import replace

from minimal_vllm_lab.sim.config import SimulationConfig
from minimal_vllm_lab.sim.job import Job
from minimal_vllm_lab.sim.simulation import make_jobs


def fitting_jobs(config: SimulationConfig, vocab_size: int, max_model_len: int) -> list[Job]:
    """Return all requests of a workload, adapted to a model.

    Token ids are taken modulo the vocabulary size. A prompt that is too long loses its end, and an
    output is shortened to fit: heavy-tailed lengths can exceed any model's maximum.

    Raises:
        ValueError: the workload is invalid, or has conversations. Their later prompts depend
            on answers, so they can only be simulated.
    """
    if config.synthetic.num_turns > 1:
        raise ValueError("num_turns: conversations can only be simulated; leave it at 1")
    return [_fitting(job, vocab_size, max_model_len) for job in make_jobs(config)]


def _fitting(job: Job, vocab_size: int, max_model_len: int) -> Job:
    prompt = array("i", (token % vocab_size for token in job.prompt[: max_model_len - 1]))
    return replace(
        job,
        prompt=prompt,
        num_output_tokens=min(job.num_output_tokens, max_model_len - len(prompt)),
    )
