"""A whole GGUF file is read as it was written; any other is refused in one line."""

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from checkpoints import FAMILIES, write_checkpoint
from gguf_files import split_gguf, write_gguf
from hypothesis import given
from hypothesis import strategies as st

from minimal_vllm.cache.memory import DeviceMemory
from minimal_vllm.engine.sizing import check_weights_fit
from minimal_vllm.formats.gguf_file import find_gguf, read_gguf
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.generation_config import GenerationConfig
from minimal_vllm.model.loader import load_model
from minimal_vllm.text.tokenizer import Tokenizer

CPU = torch.device("cpu")
MEMORY = DeviceMemory("cpu", total=1 << 30, free=1 << 30, used_by_process=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, FAMILIES["llama"], gguf.GGMLQuantizationType.Q8_0)
    return path


def read_all(path):
    """What the engine reads of a model, in its order."""
    config = ModelConfig.from_checkpoint(path)
    GenerationConfig.from_checkpoint(path, config)
    Tokenizer(path).encode("and 12 more")
    check_weights_fit(config, torch.float32, MEMORY)
    return load_model(path, config, torch.float32, CPU, max_positions=16)


def test_metadata_and_tensors_are_those_that_were_written(whole):
    file = read_gguf(whole)
    reader = gguf.GGUFReader(whole)
    fields = {key: field.contents() for key, field in reader.fields.items() if "GGUF." not in key}
    assert file.metadata.keys() == fields.keys()
    for key, value in fields.items():
        assert file.metadata[key] == pytest.approx(value), key
    for tensor in reader.tensors:
        found = file.tensors[tensor.name]
        assert found.shape == tuple(tensor.shape.tolist()[::-1])
        assert (found.offset, found.num_bytes) == (tensor.data_offset, tensor.n_bytes)
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(file.rows(tensor.name), expected.reshape(found.num_rows, -1))


def test_a_float_is_the_decimal_that_was_meant(whole):
    assert read_gguf(whole).metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-5


def assert_refused_in_one_line(path):
    with pytest.raises(ValueError) as error:
        read_all(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0, 0.00002, 0.0002, 0.001, *np.linspace(0.01, 0.999, 40)])
def test_a_file_that_was_cut_off_is_refused(whole, tmp_path, share):
    content = whole.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[: int(share * len(content))])
    assert_refused_in_one_line(path)


def test_a_damaged_header_is_refused_or_harmless(whole, tmp_path):
    """Never another error, a loop without an end, or memory by a wrong length."""
    content = whole.read_bytes()
    header = min(tensor.offset for tensor in read_gguf(whole).tensors.values())
    path, chosen = tmp_path / "damaged.gguf", random.Random(0)
    refused = 0
    for place in [*range(24), *chosen.sample(range(header), 400)]:
        damaged = bytearray(content)
        damaged[place] ^= chosen.choice([1, 0x80, 0xFF])
        path.write_bytes(damaged)
        try:
            read_all(path)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017 - both outcomes are right
    assert refused > 200


@given(st.binary(max_size=200))
def test_arbitrary_bytes_after_the_magic_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "noise.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + content)
    with pytest.raises(ValueError, match="noise"):
        read_all(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"lmgg\1\0\0\0", "is not a GGUF file: it begins with b'lmgg'"),
        (b"", "is not a GGUF file"),
        (b"GGUF\1\0\0\0" + bytes(16), "version 1"),
        (b"GGUF\0\0\0\3" + bytes(16), "big-endian"),
        (b"GGUF\3\0\0\0" + b"\xff" * 16, "beyond the end of the file"),
    ],
)
def test_what_is_no_gguf_file_is_named(tmp_path, content, complaint):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        read_gguf(path)


def test_an_unsupported_type_is_named_with_its_tensor(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    kind = gguf.GGMLQuantizationType.TQ1_0
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((1, 54), np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_up\.weight has the type TQ1_0.*supported"):
        read_gguf(tmp_path / "model.gguf")


@pytest.fixture
def parts(tmp_path):
    """The parts of a model, and the same model in one file."""
    names = [*write_gguf(tmp_path / "whole.gguf", FAMILIES["llama"])]
    split_gguf(tmp_path / "whole.gguf", tmp_path / "parts" / "a", 3)
    assert len(names) > 3
    return sorted((tmp_path / "parts").iterdir()), read_gguf(tmp_path / "whole.gguf")


def test_a_model_in_parts_is_the_same_model(parts):
    paths, whole = parts
    assert [path.name for path in paths] == [f"a-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for path in paths:  # whichever part is given
        file = read_gguf(path)
        assert file.path == paths[0]
        assert {key: file.metadata[key] for key in whole.metadata} == whole.metadata
        assert file.tensors.keys() == whole.tensors.keys()
        for name in whole.tensors:
            assert (file.rows(name) == whole.rows(name)).all()
    assert find_gguf(paths[0].parent) == paths[0]


def test_a_missing_part_and_parts_of_another_name_are_refused(parts):
    paths, _ = parts
    paths[2].rename(paths[2].with_name("b.gguf"))
    with pytest.raises(ValueError, match=r"a-00003-of-00003\.gguf is missing"):
        read_gguf(paths[0])
    with pytest.raises(ValueError, match=r"one of 3 parts.*its name doesn't say so"):
        read_gguf(paths[2].with_name("b.gguf"))


def test_a_folder_with_one_gguf_file_is_that_file(whole, tmp_path):
    (tmp_path / "mmproj-model.gguf").touch()  # of a vision model
    assert find_gguf(tmp_path) is None
    (tmp_path / "a.gguf").write_bytes(whole.read_bytes())
    assert find_gguf(tmp_path) == tmp_path / "a.gguf"
    read_all(tmp_path)
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ValueError, match=r"2 \.gguf files \(a\.gguf, b\.gguf\): give the path"):
        find_gguf(tmp_path)


def test_safetensors_come_before_a_gguf_file_beside_them(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "a.gguf").touch()
    assert find_gguf(tmp_path) is None


def test_a_file_that_is_gone_is_named():
    with pytest.raises(ValueError, match=r"nowhere\.gguf can't be read: No such file"):
        read_gguf(Path("nowhere.gguf"))
