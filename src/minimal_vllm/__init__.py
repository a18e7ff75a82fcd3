"""An LLM inference engine small enough to read in an evening, and real.

The names are vLLM's: ``from minimal_vllm import LLM, SamplingParams``. ``ARCHITECTURE.md`` is a map
of the code.
"""

import os
from typing import TYPE_CHECKING, Any

from minimal_vllm.inputs import TextPrompt, TokensPrompt
from minimal_vllm.outputs import CompletionOutput, Logprob, RequestOutput
from minimal_vllm.sampling_params import SamplingParams, StructuredOutputsParams
from minimal_vllm.version import __version__

if TYPE_CHECKING:
    from minimal_vllm.engine_args import EngineArgs
    from minimal_vllm.llm import LLM

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


def __getattr__(name: str) -> Any:
    """Import ``LLM`` on first use, because torch takes seconds to import."""
    if name == "LLM":
        from minimal_vllm.llm import LLM

        return LLM
    if name == "EngineArgs":
        from minimal_vllm.engine_args import EngineArgs

        return EngineArgs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
