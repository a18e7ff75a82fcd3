"""Traffic from a file: what was asked, and when."""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from minimal_vllm.config import PositiveInt
from minimal_vllm_lab.sim.job import Job
from minimal_vllm_lab.sim.synthetic import VOCAB_SIZE

Token = Annotated[int, Field(ge=0, lt=2**30)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False, strict=True))
class RecordedRequest:
    """A line of the file; either ``prompt_token_ids`` or ``prompt_len`` is given."""

    max_tokens: PositiveInt
    """How many tokens are generated."""
    arrival: Annotated[float, Field(ge=0)] = 0.0
    """Seconds since the start; no line has less than the one before."""
    prompt_token_ids: Annotated[list[Token], Field(min_length=1)] | None = None
    """The prompt; requests that begin alike share cached blocks."""
    prompt_len: PositiveInt | None = None
    """Stands for a prompt of so many random tokens."""

    @model_validator(mode="after")
    def _one_prompt_is_given(self) -> "RecordedRequest":
        if (self.prompt_token_ids is None) == (self.prompt_len is None):
            raise ValueError("either prompt_token_ids or prompt_len must be given")
        return self


_LINE = TypeAdapter(RecordedRequest)


def recorded_jobs(path: Path, seed: int) -> Iterator[Job]:
    """The requests of a file of JSON lines, one at a time.

    Args:
        path: a ``RecordedRequest`` on each line.
        seed: of the random tokens.

    Raises:
        ValueError: naming the line that is wrong, and what is wrong with it.
    """
    random = np.random.default_rng(seed)
    last_arrival = 0.0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            request = _parse(line, f"{path}, line {number}")
            if request.arrival < last_arrival:
                raise ValueError(
                    f"{path}, line {number}: arrival is {request.arrival:g}, but the line before "
                    f"has {last_arrival:g}: sort the lines by arrival"
                )
            last_arrival = request.arrival
            tokens = request.prompt_token_ids
            if tokens is None:
                tokens = random.integers(VOCAB_SIZE, size=request.prompt_len).tolist()
            yield Job(request.arrival, array("i", tokens), request.max_tokens)


def _parse(line: bytes, place: str) -> RecordedRequest:
    try:
        return _LINE.validate_json(line)
    except ValidationError as error:
        (first, *_) = error.errors()
        name = "".join(f"{each}: " for each in first["loc"])
        raise ValueError(f"{place}: {name}{first['msg'].removeprefix('Value error, ')}") from error
