"""Presets have the shapes of the models that they are named after."""

import json
from dataclasses import asdict

import pytest

from minimal_vllm.model.config import ModelConfig
from minimal_vllm_lab.sim.presets import PRESETS
from tests.markdown import ROOT

PUBLISHED = ROOT / "tests" / "model" / "published_configs"
FILES = {
    "gemma-3-4b": "gemma-3-4b-it",
    "gemma-3-12b": "gemma-3-12b-it",
    "gpt-oss-20b": "gpt-oss-20b",
    "gpt-oss-120b": "gpt-oss-120b",
    "llama-3.1-8b": "Llama-3.1-8B-Instruct",
    "llama-3.2-1b": "Llama-3.2-1B-Instruct",
    "qwen3-0.6b": "Qwen3-0.6B",
    "qwen3-8b": "Qwen3-8B",
    "qwen3-30b-a3b": "Qwen3-30B-A3B",
}
WITHOUT_SCALING = {"llama-3.1-8b", "llama-3.2-1b"}
"""Presets without the factors by which rotary frequencies are scaled, which cost no time."""


@pytest.mark.parametrize("name", FILES)
def test_a_preset_is_read_as_the_published_file_is(name):
    published = json.loads((PUBLISHED / f"{FILES[name]}.json").read_text())["config"]
    ours, theirs = (asdict(ModelConfig.from_dict(each)) for each in (PRESETS[name], published))
    for each in (ours, theirs):
        del each["eos_token_ids"], each["part_of"]
        if name in WITHOUT_SCALING:
            del each["rope"]["scaling"]
    assert ours == theirs
