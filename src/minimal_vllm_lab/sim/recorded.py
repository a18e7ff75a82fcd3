"""Recorded traffic: requests and their arrival times, read from a file."""

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
"""Token id, small enough to be distinguished from simulated output tokens."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False, strict=True))
class RecordedRequest:
    """Line of the file, with exactly one of ``prompt_token_ids`` and ``prompt_len``."""

    max_tokens: PositiveInt
    """Number of tokens to generate."""
    arrival: Annotated[float, Field(ge=0)] = 0.0
    """Arrival time in seconds since the start; no smaller than on the line before."""
    prompt_token_ids: Annotated[list[Token], Field(min_length=1)] | None = None
    """Token ids of the prompt. Prompts with the same beginning share cached blocks."""
    prompt_len: PositiveInt | None = None
    """Number of random tokens that stand for the prompt."""

    @model_validator(mode="after")
    def _one_prompt_is_given(self) -> "RecordedRequest":
        if (self.prompt_token_ids is None) == (self.prompt_len is None):
            raise ValueError("exactly one of prompt_token_ids and prompt_len must be given")
        return self


_LINE = TypeAdapter(RecordedRequest)


def recorded_jobs(path: Path, seed: int) -> Iterator[Job]:
    """Yield the requests of a file of JSON lines.

    Args:
        path: file with one ``RecordedRequest`` per line.
        seed: seed of the random tokens.

    Raises:
        ValueError: a line is invalid; the message names the line and what is wrong.
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
                    f"{path}, line {number}: arrival is {request.arrival:g}, but it was "
                    f"{last_arrival:g} on the line before: sort the lines by arrival"
                )
            last_arrival = request.arrival
            tokens = request.prompt_token_ids
            if tokens is None:
                tokens = random.integers(VOCAB_SIZE, size=request.prompt_len).tolist()
            yield Job(request.arrival, array("i", tokens), request.max_tokens)


def _parse(line: bytes, where: str) -> RecordedRequest:
    try:
        return _LINE.validate_json(line)
    except ValidationError as error:
        (first, *_) = error.errors()
        name = "".join(f"{each}: " for each in first["loc"])
        raise ValueError(f"{where}: {name}{first['msg'].removeprefix('Value error, ')}") from error
