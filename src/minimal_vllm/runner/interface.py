"""The interface of a runner: a plan goes in, sampled tokens come out."""

from dataclasses import dataclass
from typing import Protocol

import torch

from minimal_vllm.attention.interface import Attention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.outputs import TokenLogprobs
from minimal_vllm.sampling.sampler import Sampled
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request

DEVICE_LOST = torch.AcceleratorError
"""The error after which every CUDA call of the process fails, such as an illegal memory access.
Running out of memory is another error."""


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of some of a prompt's tokens, from ``first_position`` on."""

    request: Request
    first_position: int
    logprobs: list[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step computed."""

    sampled: Sampled
    """One list of tokens for each scheduled request that samples, in the plan's order."""
    prompt_logprobs: list[PromptLogprobs]


class Flight(Protocol):
    """A step that was launched; on a GPU it may still run."""

    def wait(self) -> StepResult:
        """Wait until the step is done, and return its result."""
        ...


class Runner(Protocol):
    """Holds the model and its KV cache, and runs plans on them."""

    def launch(self, plan: Plan) -> Flight:
        """Begin to compute the scheduled tokens, and to sample for the requests that catch up.

        Steps run in the order in which they are launched.
        """
        ...


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A decoder, its attention and its KV cache: what a runner runs on."""

    decoder: Decoder
    attention: Attention
    caches: list[LayerCache]
    block_size: int
    """Number of tokens per KV block."""
    device: torch.device
