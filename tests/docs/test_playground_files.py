"""What the playground loads is pinned, verified, and not needed to build the site."""

import re
import subprocess
import sys
import tarfile
from io import BytesIO

import pytest

from tests.markdown import ROOT

REQUIREMENTS = (ROOT / "docs" / "playground-requirements.txt").read_text(encoding="utf-8")


@pytest.fixture
def playground(monkeypatch):
    """The extension of the site that ships Python for browsers."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    import playground

    return playground


def test_the_browser_gets_the_versions_that_the_tests_have_passed_with():
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.M))
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+) --hash=sha256:\w{64}$", REQUIREMENTS, re.M))
    assert len(pinned) == 5
    assert {name: tested[name] for name in pinned} == pinned


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("npm"),
        subprocess.TimeoutExpired("npm", 300),
        subprocess.CalledProcessError(1, "npm", stderr="ENOTFOUND"),
    ],
)
def test_without_npm_or_a_network_the_site_is_built_without_python(
    playground, monkeypatch, tmp_path, error
):
    def fail(*command):
        raise error

    monkeypatch.setattr(playground, "run", fail)
    assert not playground.fetch(tmp_path / "fetched")
    assert not (tmp_path / "fetched" / "complete").exists()


def test_files_that_are_not_those_that_were_pinned_are_an_error(playground, monkeypatch, tmp_path):
    def pack(*command):
        archive = f"{command[-1]}/pyodide-{playground.PYODIDE}.tgz"
        with tarfile.open(archive, "w:gz") as files:
            files.addfile(tarfile.TarInfo("package/pyodide.mjs"), BytesIO())

    monkeypatch.setattr(playground, "run", pack)
    with pytest.raises(ValueError, match="has the SHA-512"):
        playground.fetch(tmp_path / "fetched")

    def download(*command):
        raise subprocess.CalledProcessError(
            1, "pip", stderr="THESE PACKAGES DO NOT MATCH THE HASHES"
        )

    monkeypatch.setattr(playground, "run", download)
    with pytest.raises(ValueError, match="DO NOT MATCH"):
        playground.fetch(tmp_path / "fetched")


def test_what_is_there_is_fetched_again_only_when_a_pin_changes(playground, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(playground, "fetch_pyodide", calls.append)
    monkeypatch.setattr(playground, "fetch_packages", lambda folder: None)
    for version in ("1", "1", "2"):
        monkeypatch.setattr(playground, "PYODIDE", version)
        assert playground.fetch(tmp_path / "fetched")
    assert len(calls) == 2


def test_the_packed_sources_run_without_anything_beside_them(playground, tmp_path):
    archive = tmp_path / "sources.zip"
    playground.pack_sources(archive)
    program = (
        "import sys\nsys.modules['torch'] = sys.modules['numpy'] = None\n"
        f"sys.path.insert(0, {str(archive)!r})\n"
        "from minimal_vllm_lab.view.playground import PlaygroundSettings, play\n"
        "assert 'sources.zip' in play.__code__.co_filename\n"
        "assert play(PlaygroundSettings()).complaint is None"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
