"""Where a checkpoint is: a folder, or a model on the Hugging Face hub."""

from pathlib import Path

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
    """The folder of a checkpoint: ``find_folder``, and a look whether it is one.

    Raises:
        ValueError: as ``find_folder``, or if there is no config.json in it.
    """
    folder = find_folder(name, revision, download_dir, weights=weights)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: it is not a Hugging Face checkpoint")
    return folder


def find_folder(
    name: str | Path,
    revision: str | None = None,
    download_dir: str | Path | None = None,
    *,
    weights: bool,
) -> Path:
    """A folder of this machine, or of the hub, from which it is downloaded if need be.

    Args:
        name: a folder, or the id of a model on the hub, such as ``Qwen/Qwen3-0.6B``.
        revision: a branch, tag or commit on the hub; None: its main branch.
        download_dir: where downloads are kept; None: where huggingface_hub keeps them.
        weights: whether to download them too.

    Raises:
        ValueError: if it is neither, or can't be downloaded.
    """
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else _download(str(name), revision, download_dir, weights)


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
