"""The simulator's workloads, for a real engine: tokens that it knows, lengths that it holds."""

from array import array
from dataclasses import replace

from minimal_vllm_lab.sim.config import SimulationConfig
from minimal_vllm_lab.sim.job import Job
from minimal_vllm_lab.sim.simulation import make_jobs


def fitting_jobs(config: SimulationConfig, vocab_size: int, max_model_len: int) -> list[Job]:
    """All requests of a workload.

    Tokens are taken modulo the vocabulary's size. Of a prompt that is too long, the beginning is
    kept, and of an output what still fits: a heavy tail has lengths that no model holds.

    Raises:
        ValueError: the workload can't be made, or has conversations, whose turns are made of
            answers.
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
