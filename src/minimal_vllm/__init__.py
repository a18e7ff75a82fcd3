"""An LLM inference engine small enough to read in an evening, and real.

The names are vLLM's: ``from minimal_vllm import LLM, SamplingParams``. ``ARCHITECTURE.md`` is a map
of the code.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from minimal_vllm.version import __version__

if TYPE_CHECKING:
    from minimal_vllm.engine_args import EngineArgs
    from minimal_vllm.inputs import TextPrompt, TokensPrompt
    from minimal_vllm.llm import LLM
    from minimal_vllm.outputs import CompletionOutput, Logprob, RequestOutput
    from minimal_vllm.sampling_params import SamplingParams, StructuredOutputsParams

# OpenMP reads this when torch is imported. By default its threads spin while they wait for each
# other, which is ten times slower where the cores have other work to do.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__all__ = [
    "LLM",
    "CompletionOutput",
    "EngineArgs",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "__version__",
]

_MODULES = {
    "LLM": "llm",
    "CompletionOutput": "outputs",
    "EngineArgs": "engine_args",
    "Logprob": "outputs",
    "RequestOutput": "outputs",
    "SamplingParams": "sampling_params",
    "StructuredOutputsParams": "sampling_params",
    "TextPrompt": "inputs",
    "TokensPrompt": "inputs",
}
"""Module of each name, imported on first use: torch takes seconds, and Ctrl-C should end a command
quietly from the beginning."""


def __getattr__(name: str) -> Any:
    """Return one of the names, imported from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Return all names, imported or not: shells complete them."""
    return [*globals(), *_MODULES]
