import json
import re
import sys

import pytest
import torch
from checkpoints import (
    FAMILIES,
    random_weights,
    tensor_shapes,
    write_checkpoint,
    write_json,
    write_weights,
)

from minimal_vllm.model import loader, safetensors_file
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.loader import checkpoint_tensors, init_random, load_model
from minimal_vllm.model.multimodal import text_tensor_name

CPU = torch.device("cpu")
FUSED_WITH_BIASES = FAMILIES["llama-mqa-biases"]


def load(folder, dtype=torch.float32, **options):
    return load_model(folder, ModelConfig.from_checkpoint(folder), dtype, CPU, **options)


def assert_holds(model, weights):
    tensors = checkpoint_tensors(model)
    assert tensors.keys() == weights.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, weights[name].to(tensor.dtype)), name


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint", FUSED_WITH_BIASES)


@pytest.fixture
def weights():
    return random_weights(FUSED_WITH_BIASES)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_number_of_every_parameter_has_one_place_in_the_checkpoint(name):
    model = Decoder(ModelConfig.from_dict(FAMILIES[name]), torch.float32, CPU)
    tensors = checkpoint_tensors(model)
    shapes = {
        text_tensor_name(name): shape for name, shape in tensor_shapes(FAMILIES[name]).items()
    }
    shapes.pop(None, None)  # tensors of other modalities
    assert {name: tuple(t.shape) for name, t in tensors.items()} == shapes
    for number, tensor in enumerate(tensors.values()):
        tensor.fill_(number)
    for number, tensor in enumerate(tensors.values()):
        assert (tensor == number).all(), "two tensors overlap"
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_arrive_whatever_the_shards_and_dtypes(tmp_path, weights, wanted, stored, shards):
    weights = {name: tensor.to(stored) for name, tensor in weights.items()}
    write_json(tmp_path / "config.json", FUSED_WITH_BIASES)
    write_weights(tmp_path, weights, shards)
    model = load(tmp_path, wanted)
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    assert_holds(model, weights)


@pytest.mark.parametrize("window_bytes", [8, 24, 1000])
def test_tensors_larger_than_the_window_are_copied_in_pieces(
    folder, weights, window_bytes, monkeypatch
):
    monkeypatch.setattr(safetensors_file, "WINDOW_BYTES", window_bytes)
    assert_holds(load(folder), weights)


def test_loading_draws_no_random_numbers(folder):
    state = torch.get_rng_state()
    load(folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_is_shown_on_a_terminal_and_if_wanted_only(folder, capsys, monkeypatch):
    load(folder, progress=True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load(folder)
    assert capsys.readouterr().err == ""
    load(folder, progress=True)
    assert "Loading weights: 100%" in capsys.readouterr().err


def test_harmless_extras_are_tolerated(tmp_path):
    config = FAMILIES["qwen3"]
    weights = random_weights(config)
    assert config["tie_word_embeddings"]
    extras = {
        "lm_head.weight": weights["model.embed_tokens.weight"].clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    write_json(tmp_path / "config.json", config)
    write_weights(tmp_path, {**weights, **extras})
    assert_holds(load(tmp_path), weights)


@pytest.mark.parametrize("layout", ["transformers v5", "transformers v4"])
def test_tensors_of_other_modalities_are_skipped_and_named(tmp_path, layout, caplog):
    config = FAMILIES["gemma3-text-part"]
    folder, weights = write_checkpoint(tmp_path / "model", config), random_weights(config)
    if layout == "transformers v4":
        old = {
            name.replace("model.language_model.", "language_model.model.").replace(
                "model.vision_tower", "vision_tower"
            ): numbers
            for name, numbers in weights.items()
        }
        write_weights(folder, old)
    model = load(folder)
    assert "skipped: vision_tower (1)" in caplog.text
    assert "Gemma3ForConditionalGeneration" in caplog.text
    offset = {
        text_tensor_name(name): numbers + 1 if name.endswith("norm.weight") else numbers
        for name, numbers in weights.items()
    }
    del offset[None]
    assert_holds(model, offset)


def test_a_fused_tensor_with_too_few_rows_is_named(tmp_path):
    config = FAMILIES["phi3"]
    folder, weights = write_checkpoint(tmp_path / "model", config), random_weights(config)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    weights[name] = weights[name][:-1]
    write_weights(folder, weights)
    with pytest.raises(ValueError, match=re.escape(f"{name} is [63, 32], must be [64, 32]")):
        load(folder)


def test_all_differences_are_listed_in_one_error(folder, weights):
    del weights["model.norm.weight"]
    weights["model.layers.7.self_attn.q_proj.weight"] = torch.ones(2)
    weights["model.layers.0.self_attn.k_proj.bias"] = torch.ones(3)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.ones((64, 32), dtype=torch.int8)
    write_weights(folder, weights)
    with pytest.raises(ValueError) as caught:
        load(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "missing: model.norm.weight;" in message
    assert "unexpected: model.layers.7.self_attn.q_proj.weight;" in message
    assert "model.layers.0.self_attn.k_proj.bias is [3], must be [8]" in message
    assert "model.layers.1.mlp.up_proj.weight is I8, must be one of F64, F32" in message


def test_a_long_list_of_differences_is_cut_short(folder):
    write_weights(folder, {"x": torch.ones(1)})
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight, .* and \d+ more; unexpected"):
        load(folder)


def test_a_tensor_in_two_shards_is_an_error(folder, weights):
    (folder / "model.safetensors").unlink()
    write_weights(folder, weights, shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    (folder / "copy.safetensors").write_bytes(
        (folder / "model-00001-of-00002.safetensors").read_bytes()
    )
    index["weight_map"]["model.norm.weight"] = "copy.safetensors"
    write_json(folder / "model.safetensors.index.json", index)
    with pytest.raises(ValueError, match=r"is both in copy\.safetensors and in .*00001-of-00002"):
        load(folder)


def test_missing_shards_are_named(folder, weights):
    (folder / "model.safetensors").unlink()
    write_weights(folder, weights, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"index\.json .*missing: model-00002-of-00003"):
        load(folder)


WRONG_NAMES = (
    None,
    True,
    5,
    1.5,
    [],
    ["x"],
    {},
    {"a": "x"},
    "",
    ".",
    "..",
    "/",
    "../x",
    "a/b",
    "x",
)
BROKEN_INDICES = ["{", "[]", "[" * 100_000, {}, {"weight_map": {}}, {"weight_map": ["a"]}]
BROKEN_INDICES += [{"weight_map": {"a": wrong, "b": "c"}} for wrong in WRONG_NAMES]


@pytest.mark.parametrize("index", BROKEN_INDICES, ids=lambda index: json.dumps(index)[:40])
def test_a_broken_index_is_named(folder, index):
    (folder / "model.safetensors").rename(folder / "c")
    text = index if isinstance(index, str) else json.dumps(index)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        load(folder)


def test_a_folder_without_safetensors_is_refused_and_pickles_are_pointed_at(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has neither model\.safetensors nor .*index\.json$"):
        load(folder)
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle"):
        load(folder)


def header_bytes(header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN_FILES = {
    "empty": b"",
    "a few bytes": b"\x08\x00\x00",
    "endless header": b"\xff" * 100,
    "no header": bytes(100),
    "no JSON": header_bytes(b"{]"),
    "a list": header_bytes([1, 2]),
    "no offsets": header_bytes({"a": {"dtype": "F32", "shape": [2]}}),
    "one offset": header_bytes({"a": {**ENTRY, "data_offsets": [0]}}),
    "text for offsets": header_bytes({"a": {**ENTRY, "data_offsets": ["0", "8"]}}),
    "text for a shape": header_bytes({"a": {**ENTRY, "shape": ["x"]}}) + bytes(8),
    "no number for a shape": header_bytes({"a": {**ENTRY, "shape": 2}}) + bytes(8),
    "wrong size": header_bytes({"a": {**ENTRY, "shape": [3]}}) + bytes(8),
    "ends before it begins": header_bytes({"a": {**ENTRY, "data_offsets": [8, 0]}}) + bytes(8),
    "cut short": header_bytes({"a": ENTRY}) + bytes(7),
    "a dtype that is no text": header_bytes({"a": {**ENTRY, "dtype": []}}) + bytes(8),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_named(folder, name):
    (folder / "model.safetensors").write_bytes(BROKEN_FILES[name])
    with pytest.raises(ValueError, match=re.escape(str(folder / "model.safetensors"))):
        load(folder)


def test_a_truncated_shard_is_named_before_any_memory_is_taken(folder, weights, monkeypatch):
    (folder / "model.safetensors").unlink()
    write_weights(folder, weights, shards=3)
    shard = folder / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    monkeypatch.setattr(loader, "Decoder", None)
    with pytest.raises(ValueError, match=r"model-00003-of-00003\.safetensors is not a complete"):
        load(folder)


def test_a_file_that_shrinks_while_it_is_read_is_named(folder, monkeypatch):
    path = folder / "model.safetensors"

    def shrink(*args):
        path.write_bytes(path.read_bytes()[:-1])

    monkeypatch.setattr(loader, "check_match", shrink)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete"):
        load(folder)


def test_random_weights_are_reproducible_and_give_finite_logits():
    config = ModelConfig.from_dict(FAMILIES["qwen3-bias-layer-types"])

    def filled(seed):
        model = Decoder(config, torch.float32, CPU)
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
        init_random(model, seed)
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    numbers = filled(1)
    assert torch.equal(numbers, filled(1))
    assert not torch.equal(numbers, filled(2))
    assert numbers.isfinite().all()
