"""The interface of a runner: a plan goes in, sampled tokens come out."""

from dataclasses import dataclass
from typing import Protocol

import torch

from minimal_vllm.attention.backend import Backend
from minimal_vllm.cache.kv_cache import LayerCache
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.outputs import TokenLogprobs
from minimal_vllm.sampling.sampler import SamplerOutput
from minimal_vllm.step.plan import Plan
from minimal_vllm.step.request import Request

DEVICE_LOST = torch.AcceleratorError
"""After an illegal memory access, say, each CUDA call of the process fails; running out of memory
is another error."""


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """The log-probabilities of a prompt's tokens ``first_position …``, computed in this step."""

    request: Request
    first_position: int
    logprobs: list[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step computed."""

    sampled: SamplerOutput
    """One entry for each scheduled request that samples, in the plan's order."""
    prompt_logprobs: list[PromptLogprobs]


class RunningStep(Protocol):
    """A step that was launched; on a GPU it may still run."""

    def wait(self) -> StepResult:
        """What it computed, once it has."""
        ...


class Runner(Protocol):
    """Holds the model and its KV cache, and runs plans on them."""

    def launch(self, plan: Plan) -> RunningStep:
        """Begin to compute all scheduled tokens, and to sample where a counter has caught up.

        Steps run in the order in which they are launched.
        """
        ...


@dataclass(frozen=True, slots=True)
class ModelState:
    """What a runner runs on."""

    model: Decoder
    backend: Backend
    caches: list[LayerCache]
    block_size: int
    device: torch.device
