"""A checkpoint's generation_config.json: its stop tokens and default sampling parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minimal_vllm.formats.gguf_file import find_gguf, read_gguf
from minimal_vllm.model.config import ModelConfig, read_json
from minimal_vllm.model.gguf_config import generation_config_json
from minimal_vllm.model.json_fields import token_ids
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.settings import SettingsError

SAMPLING_NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""Supported keys of generation_config.json -> their names in ``SamplingParams``."""


@dataclass(frozen=True)
class GenerationConfig:
    """Stop tokens and default sampling parameters that a checkpoint recommends."""

    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end the output: those of generation_config.json, then others of config.json."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Default arguments of ``SamplingParams``, which a request can override."""

    @classmethod
    def from_checkpoint(cls, checkpoint: Path, config: ModelConfig) -> "GenerationConfig":
        """Read the ``generation_config.json`` in a checkpoint's folder, or a GGUF file's metadata.

        If a folder has both, the JSON file takes precedence. Without either, only the stop tokens
        of ``config`` are used.

        Raises:
            ValueError: the file can't be read, or has an invalid value.
        """
        path = checkpoint / "generation_config.json"
        if path.exists():
            raw = read_json(path)
        elif (gguf := find_gguf(checkpoint)) is not None:
            path, raw = gguf, generation_config_json(read_gguf(gguf))
        else:
            raw = {}
        try:
            eos_token_ids = (*token_ids(raw.get("eos_token_id")), *config.eos_token_ids)
            sampling = _read_sampling(raw)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return cls(tuple(dict.fromkeys(eos_token_ids)), sampling)

    def overridden(self, raw: Mapping[str, Any]) -> "GenerationConfig":
        """Return a copy with other values for some keys of generation_config.json.

        Raises:
            ValueError: a key is unknown, or its value is invalid.
        """
        known = {*SAMPLING_NAMES, "eos_token_id"}
        if unknown := sorted(raw.keys() - known):
            raise ValueError(
                f"override_generation_config: {', '.join(unknown)} is not read from a generation "
                f"config; supported keys: {', '.join(sorted(known))}"
            )
        try:
            eos_token_ids = token_ids(raw.get("eos_token_id")) or self.eos_token_ids
            sampling = {**self.sampling, **_read_sampling(raw)}
        except ValueError as error:
            raise ValueError(f"override_generation_config: {error}") from error
        return replace(self, eos_token_ids=tuple(eos_token_ids), sampling=sampling)


def _read_sampling(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``SamplingParams`` in a generation_config.json."""
    sampling = {name: raw[key] for key, name in SAMPLING_NAMES.items() if raw.get(key) is not None}
    try:
        SamplingParams(**sampling)
    except SettingsError as error:
        (name, *_), complaint = error.errors()[0]["loc"], error.errors()[0]["msg"]
        raise ValueError(f"{name} = {sampling[str(name)]!r}: {complaint}") from error
    return sampling
