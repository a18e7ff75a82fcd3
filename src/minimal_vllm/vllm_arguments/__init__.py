"""Arguments of vLLM that this engine doesn't support, and their values that change nothing.

Scripts written for vLLM pass many arguments at their defaults. Such a value is accepted and
dropped; any other value is refused with a sentence that says what is supported instead. The names
and defaults are those of ``EngineArgs``, ``SamplingParams`` and ``FrontendArgs`` in vLLM 0.33, and
some of earlier versions.
"""

from minimal_vllm.vllm_arguments.engine import ENGINE, OFFLINE
from minimal_vllm.vllm_arguments.request import (
    BEAM_SEARCH,
    BEAM_SEARCH_REQUEST,
    REQUEST,
    SAMPLING,
)
from minimal_vllm.vllm_arguments.server import SERVER
from minimal_vllm.vllm_arguments.unsupported import (
    Unsupported,
    accepts,
    check_unsupported,
    drop_neutral,
    takes_no_value,
)

__all__ = [
    "BEAM_SEARCH",
    "BEAM_SEARCH_REQUEST",
    "ENGINE",
    "OFFLINE",
    "REQUEST",
    "SAMPLING",
    "SERVER",
    "Unsupported",
    "accepts",
    "check_unsupported",
    "drop_neutral",
    "takes_no_value",
]
