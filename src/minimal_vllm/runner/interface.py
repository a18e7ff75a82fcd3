"""The interface of a runner, which turns a step's plan into sampled tokens."""

from dataclasses import dataclass
from typing import Protocol

import torch

from minimal_vllm.attention.interface import Attention
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.cache.layer_groups import LayerGroups
from minimal_vllm.model.network import Network
from minimal_vllm.outputs import FlatLogprobs
from minimal_vllm.runner.failures import RankFailedError
from minimal_vllm.sampling.sampler import Sampled
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request

DEVICE_LOST = (torch.AcceleratorError, RankFailedError)
"""Errors after which no step can be computed. After the first, every CUDA call of the process
fails; an illegal memory access is one, running out of memory is not."""


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of consecutive tokens of a prompt, beginning at ``first_position``."""

    request: Request
    first_position: int
    logprobs: FlatLogprobs


@dataclass(frozen=True, slots=True)
class StepResult:
    """Tokens and log-probabilities that a step computed."""

    sampled: Sampled
    """One list of tokens for each scheduled request that samples, in the plan's order."""
    prompt_logprobs: list[PromptLogprobs]


class Flight(Protocol):
    """Step that was launched. On a GPU, it may still be running."""

    def wait(self) -> StepResult:
        """Wait until the step has finished, and return its result."""
        ...


class Runner(Protocol):
    """Interface of a runner, which holds the model and its KV cache."""

    def launch(self, plan: Plan) -> Flight:
        """Start a step: compute the scheduled tokens, and sample for ``plan.sampling``.

        Steps run in the order in which they are launched.
        """
        ...


@dataclass(frozen=True, slots=True)
class CachedModel:
    """Decoder, attention and KV cache that a runner uses."""

    decoder: Network
    attention: Attention
    caches: list[LayerCache]
    """KV cache of each layer."""
    groups: LayerGroups
    """Groups of layers, each with block tables of its own."""
    block_size: int
    """Number of tokens per KV block."""
    device: torch.device
