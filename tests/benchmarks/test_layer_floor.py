"""The floor of a part is its weights as they are stored, its activations, or its arithmetic."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import layer_floor
from benchmarks.gpu_workloads import QUANTIZATIONS, build
from benchmarks.layer_floor import (
    NVLINK,
    Precision,
    StepWork,
    head_floor,
    layer_floors,
    num_keys,
    num_pairs,
    work_of,
)
from benchmarks.layer_marks import mark_decoder
from tests.benchmarks.test_gpu_workloads import TINY

PRECISION = Precision(activation=2, cached=2)
HIDDEN, INNER, HEADS = 64, 64, 8 * 128
DECODES = StepWork([(99, 1)] * 4, 4, max_keys=10**9)


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """A byte takes a microsecond, and a FLOP almost nothing."""
    monkeypatch.setattr(layer_floor, "floor_of", lambda moved, flops: max(moved, flops / 1e6))


def decoder_of(**changes):
    options = {"num_gpu_blocks_override": 100, "max_model_len": 256, "dtype": "bfloat16"}
    options["attention_backend"] = "reference"  # it keeps weights as a GPU does
    return build({**TINY, "vocab_size": 100, **changes}, options, "cpu").built.model.decoder


def test_a_product_reads_its_weights_and_moves_its_tokens():
    floors = layer_floors(decoder_of(), 0, DECODES, PRECISION)
    assert floors["qkv product"] == 2 * (3 * HEADS * HIDDEN + 4 * (HIDDEN + 3 * HEADS))
    assert floors["o product"] == 2 * (HEADS * HIDDEN + 4 * (HEADS + HIDDEN))
    assert floors["gate and up"] == 2 * (2 * INNER * HIDDEN + 4 * (HIDDEN + INNER))
    assert floors["down"] == 2 * (INNER * HIDDEN + 4 * (INNER + HIDDEN))


def test_attention_reads_every_key_and_value_once():
    floors = layer_floors(decoder_of(), 0, DECODES, PRECISION)
    assert floors["attention"] == 2 * 2 * 4 * 100 * HEADS + 2 * 2 * 4 * HEADS
    halved = layer_floors(decoder_of(), 0, DECODES, Precision(activation=2, cached=1))
    assert halved["attention"] == 2 * 4 * 100 * HEADS + 2 * 2 * 4 * HEADS
    assert halved["rotate and store"] < floors["rotate and store"]


def test_only_ranks_exchange_anything():
    decoder = decoder_of()
    alone, in_two = (
        layer_floors(decoder, 0, DECODES, Precision(2, 2, ranks))["sum over GPUs"]
        for ranks in (1, 2)
    )
    assert alone == 0
    assert in_two == pytest.approx(4 * HIDDEN * 2 / NVLINK * 1e6)
    more = head_floor(decoder, DECODES, Precision(2, 2, 2)) - head_floor(
        decoder, DECODES, PRECISION
    )
    assert more == pytest.approx(4 * 100 * 2 / NVLINK * 1e6)


def test_the_head_multiplies_only_what_is_sampled():
    prompts = StepWork([(0, 50)], 1, max_keys=64)
    assert head_floor(decoder_of(), prompts, PRECISION) == 2 * (100 * HIDDEN + HIDDEN + 100)


def test_quantized_weights_count_as_they_are_stored():
    plain = layer_floors(decoder_of(), 0, DECODES, PRECISION)["down"]
    quantized = decoder_of(quantization_config=QUANTIZATIONS["fp8"])
    saved = plain - layer_floors(quantized, 0, DECODES, PRECISION)["down"]
    assert saved == INNER * HIDDEN - 4 * HIDDEN  # one byte per weight, and a scale per row
    assert layer_floor.speedup(quantized.layers[0].mlp.down_proj) == 2
    assert layer_floor.speedup(decoder_of().layers[0].mlp.down_proj) == 1


def test_experts_that_no_token_chooses_are_not_read():
    experts = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    }
    one = StepWork([(99, 1)], 1, max_keys=10**9)
    floors = layer_floors(decoder_of(**experts), 0, one, PRECISION)
    assert floors["experts"] == pytest.approx(2 * (2 * 3 * HIDDEN * 32 + 2 * HIDDEN))
    assert floors["router"] == 2 * (8 * HIDDEN + HIDDEN + 8)
    assert "down" not in floors


def test_keys_that_are_shared_or_behind_a_window_are_not_read_twice():
    work = StepWork([(90, 10), (99, 1)], 2, max_keys=120)
    assert num_keys(work, None) == 120
    assert num_keys(StepWork(work.contexts, 2, max_keys=500), None) == 200
    assert num_keys(work, 16) == 25 + 16


@pytest.mark.parametrize("window", [None, 1, 7, 50])
def test_pairs_are_counted_as_one_by_one(window):
    work = StepWork([(0, 20), (30, 5), (7, 1)], 3, max_keys=0)
    expected = sum(
        min(position + 1, window or 10**9)
        for start, num_new in work.contexts
        for position in range(start, start + num_new)
    )
    assert num_pairs(work, window) == expected


def test_the_work_of_a_plan_counts_a_shared_block_once():
    entries = [
        SimpleNamespace(request=SimpleNamespace(block_table=blocks), start=start, num_new=1)
        for blocks, start in (([1, 2], 20), ([1, 3], 30))
    ]
    plan = SimpleNamespace(scheduled=entries, sampling=[None])
    assert work_of(plan, 16) == StepWork([(20, 1), (30, 1)], 1, 48)


def test_every_floor_is_of_a_part_that_is_marked(tmp_path):
    decoder = decoder_of()
    mark_decoder(decoder)
    hidden = torch.zeros(1, HIDDEN, dtype=decoder.dtype)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        layer = decoder.layers[0]
        for part in (layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.mlp.gate_up_proj):
            part.forward(torch.zeros(1, part.in_size, dtype=decoder.dtype))
        layer.before_attention.forward(hidden)
        layer.before_mlp.forward(hidden)
        layer.complete(hidden)
        layer.after_attention.normalize(hidden)
        layer.after_mlp.normalize(hidden)
        layer.mlp.down_proj.forward(hidden)
    profiled.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    marked = {each["name"] for each in events if each.get("cat") == "user_annotation"}
    floors = layer_floors(decoder, 0, DECODES, PRECISION)
    in_attention = {"rotate and store", "attention"}
    assert marked == {f"part: {name}" for name in floors if name not in in_attention}
