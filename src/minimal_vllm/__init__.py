"""minimal-vllm: an LLM inference engine small enough to read in an evening, and real.

``from minimal_vllm import LLM, SamplingParams``, as with vLLM. ``ARCHITECTURE.md`` is the map.
"""

import os
from typing import TYPE_CHECKING, Any

from minimal_vllm.outputs import CompletionOutput, Logprob, RequestOutput
from minimal_vllm.sampling_params import SamplingParams, StructuredOutputsParams
from minimal_vllm.version import __version__

if TYPE_CHECKING:
    from minimal_vllm.llm import LLM

# OpenMP reads it as torch is imported. By default its threads spin while they wait for each other:
# on cores that have other work to do, they mostly wait for one that spins. That is tenfold slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__all__ = [
    "LLM",
    "CompletionOutput",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import ``LLM`` on first use: it needs torch, which takes seconds to import."""
    if name == "LLM":
        from minimal_vllm.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
