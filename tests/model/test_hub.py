import os
import subprocess
import sys

import pytest
from checkpoints import write_checkpoint

from minimal_vllm.model.hub import resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """As HF_HUB_OFFLINE=1 does, which huggingface_hub reads only once, when imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def cache(tmp_path):
    """A cache as huggingface_hub lays it out, with one model in it."""
    repository = tmp_path / "cache" / "models--org--tiny"
    write_checkpoint(repository / "snapshots" / COMMIT)
    for revision in ("main", "v1"):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(COMMIT)
    return tmp_path / "cache"


def test_a_folder_is_used_as_it_is(tmp_path):
    write_checkpoint(tmp_path / "model")
    assert resolve_model(str(tmp_path / "model")) == tmp_path / "model"


def test_a_folder_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_checkpoint(tmp_path / "model")
    assert resolve_model("~/model") == tmp_path / "model"


def test_a_gguf_file_is_used_as_it_is(tmp_path):
    (tmp_path / "model.gguf").touch()
    assert resolve_model(str(tmp_path / "model.gguf")) == tmp_path / "model.gguf"
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_gguf_file_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*model\.gguf"):
        resolve_model(str(tmp_path / "model.gguf"))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"model\.safetensors is neither .*: give the folder"):
        resolve_model(str(tmp_path / "model.safetensors"))


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        resolve_model(tmp_path)


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_model_in_the_cache_is_found_offline(cache, revision):
    folder = resolve_model("org/tiny", revision, download_dir=cache)
    assert folder == cache / "models--org--tiny" / "snapshots" / COMMIT


@pytest.fixture
def gguf_cache(tmp_path):
    """A cache with a repository of .gguf files, in which Q8_0 is split."""
    snapshot = tmp_path / "cache" / "models--org--tiny-GGUF" / "snapshots" / COMMIT
    names = ["tiny-Q4_K_M", "tiny-IQ4_K_M", "mmproj-tiny-Q4_K_M", "tiny-q5_0"]
    names += ["Q8_0/tiny-Q8_0-00001-of-00002", "Q8_0/tiny-Q8_0-00002-of-00002"]
    names += ["a.Q6_K", "b.Q6_K"]
    for name in names:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / f"{name}.gguf").touch()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("quantization", "file"),
    [
        ("Q4_K_M", "tiny-Q4_K_M.gguf"),
        ("q4_k_m", "tiny-Q4_K_M.gguf"),
        ("IQ4_K_M", "tiny-IQ4_K_M.gguf"),
        ("Q5_0", "tiny-q5_0.gguf"),
        ("Q8_0", "tiny-Q8_0-00001-of-00002.gguf"),
    ],
)
def test_a_quantization_chooses_the_gguf_file(gguf_cache, quantization, file):
    found = resolve_model(f"org/tiny-GGUF:{quantization}", download_dir=gguf_cache)
    assert found.name == file


@pytest.mark.parametrize(
    ("quantization", "words"), [("Q2_K", "it has: none"), ("Q6_K", r"it has: a\.Q6_K.*, b\.Q6_K")]
)
def test_a_quantization_that_no_or_several_files_have_is_refused(gguf_cache, quantization, words):
    with pytest.raises(ValueError, match=words):
        resolve_model(f"org/tiny-GGUF:{quantization}", download_dir=gguf_cache)


def test_the_cache_is_found_through_the_environment(cache):
    code = "from minimal_vllm.model.hub import resolve_model; print(resolve_model('org/tiny'))"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert found.stdout.strip().endswith(COMMIT), found.stderr


def test_a_model_that_is_not_in_the_cache_is_named_offline(cache):
    with pytest.raises(ValueError, match=r"'org/other' is not a local folder.*isn't in the cache"):
        resolve_model("org/other", download_dir=cache)
    with pytest.raises(ValueError, match=r"'org/tiny' at revision 'v2' .*isn't in the cache"):
        resolve_model("org/tiny", "v2", download_dir=cache)


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "a b", "x/y/z"])
def test_a_name_that_can_be_no_hub_id_is_refused(name, cache):
    with pytest.raises(ValueError, match=r"is not a local folder, .*hub id of the form"):
        resolve_model(name, download_dir=cache)


def test_a_cached_model_without_a_config_is_refused(cache):
    (cache / "models--org--tiny" / "snapshots" / COMMIT / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        resolve_model("org/tiny", download_dir=cache)


def http_error(kind, status):
    """An error as the hub's client raises it, made without its constructor's HTTP response."""
    from huggingface_hub import errors

    error = getattr(errors, kind).__new__(getattr(errors, kind))
    error.args = (f"{status} from the hub",)
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (http_error("GatedRepoError", 403), "it is gated"),
        (http_error("RepositoryNotFoundError", 401), "no such model exists"),
        (http_error("RevisionNotFoundError", 404), "it has no such revision"),
        (
            PermissionError(13, "Permission denied", "/cache"),
            "the cache is not writable.*'/cache'",
        ),
        (OSError(28, "No space left on device"), "OSError: .*No space left"),
        (RuntimeError("proxy trouble"), "RuntimeError: proxy trouble"),
    ],
)
def test_what_keeps_a_download_from_working_is_said(error, reason, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ValueError, match=reason):
        resolve_model("org/name")
