"""How much demo traffic comes."""

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

TokenCount = Annotated[int, Field(ge=1, le=100_000)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class TrafficSettings:
    """How much comes. Lengths are means: each request's is between half and one and a half."""

    requests_per_100_steps: Annotated[float, Field(ge=0, le=1000)] = 7.0
    """So many requests come in 100 steps, on average."""
    prompt_tokens: TokenCount = 48
    """The mean length of a prompt, in tokens."""
    output_tokens: TokenCount = 96
    """The mean length of an output, in tokens."""
    shared_prefix_tokens: Annotated[int, Field(ge=0, le=100_000)] = 32
    """So many tokens are the same at the beginning of all prompts, within their length."""
