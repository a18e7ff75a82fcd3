"""What quantizing costs the built-in model, measured by the course's own script."""

import importlib.util
import sys
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from safetensors.torch import load_file
from torch.nn.functional import linear

from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.model.config import read_json
from minimal_vllm.model.quantization.fp8 import Fp8Weight, quantize_rows
from minimal_vllm.text.tokenizer import Tokenizer
from tests.gguf_files import write_gguf

SCRIPT = Path(__file__).parents[3] / "docs" / "course" / "code" / "quantization.py"
BOUNDS = {
    "FP8, a scale per row": 0.01,
    "FP8, one scale": 0.015,
    "FP8, blocks of 128": 0.01,
    "4 bits, groups of 32": 0.05,
    "4 bits, groups of 64": 0.06,
}
"""Maximum relative increase of the perplexity."""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("quantization_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_no_form_costs_more_perplexity_than_its_bound(script, tmp_path):
    tokens = Tokenizer(DEMO_MODEL_DIR).encode(script.ALICE.read_text(encoding="utf-8"))[:300]
    checkpoints = script.write_forms(str(DEMO_MODEL_DIR), tmp_path)
    plain, size = script.perplexity(checkpoints["16 bits"], tokens)
    assert 10 < plain < 40
    cached, _ = script.perplexity(checkpoints["16 bits"], tokens, kv_cache_dtype="fp8")
    assert cached < 1.01 * plain
    integers, smaller = script.perplexity(checkpoints["16 bits"], tokens, quantization="int8")
    assert 0.99 * plain < integers < 1.01 * plain
    assert smaller < 0.65 * size
    for form, bound in BOUNDS.items():
        found, smaller = script.perplexity(checkpoints[form], tokens)
        assert 0.98 * plain < found < (1 + bound) * plain, form
        assert smaller < (0.6 if form.startswith("FP8") else 0.4) * size, form


def test_activations_in_fp8_cost_no_more(script, tmp_path, monkeypatch):
    """A GPU rounds the inputs of products with several tokens, with one scale per token."""
    tokens = Tokenizer(DEMO_MODEL_DIR).encode(script.ALICE.read_text(encoding="utf-8"))[:300]
    checkpoints = script.write_forms(str(DEMO_MODEL_DIR), tmp_path)

    def product(weight, x, bias):
        numbers, scale = quantize_rows(x)
        return linear(numbers.float() * scale, weight.dequantized(x.dtype), bias)

    plain, _ = script.perplexity(checkpoints["16 bits"], tokens)
    monkeypatch.setattr(Fp8Weight, "product", product)
    for form in ("FP8, a scale per row", "FP8, one scale"):
        found, _ = script.perplexity(checkpoints[form], tokens)
        assert 0.98 * plain < found < (1 + BOUNDS[form]) * plain, form


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_gguf_file_loses_next_to_nothing_as_8_bit_integers(script, tmp_path, kind):
    """On a CPU that is what becomes of these types: a scale per row instead of 32 columns."""
    tokens = Tokenizer(DEMO_MODEL_DIR).encode(script.ALICE.read_text(encoding="utf-8"))[:300]
    weights = load_file(DEMO_MODEL_DIR / "model.safetensors")
    path = tmp_path / "model.gguf"
    write_gguf(
        path,
        read_json(DEMO_MODEL_DIR / "config.json"),
        GGMLQuantizationType[kind],
        weights={name: each.float() for name, each in weights.items()},
    )
    exact, _ = script.perplexity(path, tokens)
    integers, _ = script.perplexity(path, tokens, quantization="int8")
    assert 0.995 * exact < integers < 1.005 * exact
