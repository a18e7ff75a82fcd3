"""Settings of the demo traffic."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from minimal_vllm.settings import SETTINGS

TokenCount = Annotated[int, Field(ge=1, le=100_000)]


@dataclass(frozen=True, config=SETTINGS)
class TrafficSettings:
    """Rate and lengths of the demo traffic.

    Lengths are means: each request has between half and one and a half times the mean.
    """

    requests_per_100_steps: Annotated[float, Field(ge=0, le=1000)] = 7.0
    """Mean number of new requests per 100 steps."""
    prompt_tokens: TokenCount = 48
    """Mean length of a prompt, in tokens."""
    output_tokens: TokenCount = 96
    """Mean length of an output, in tokens."""
    shared_prefix_tokens: Annotated[int, Field(ge=0, le=100_000)] = 32
    """Number of tokens at the start of each prompt that all prompts have in common."""
