"""Names of the files of a GGUF model that is split into parts: ``model-00001-of-00003.gguf``.

``llama-gguf-split`` of llama.cpp splits large models. The first part holds all metadata.
"""

import re
from pathlib import Path

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def parts_of(path: Path) -> list[Path]:
    """Return all parts of the model that a file is a part of, in order; else the file alone."""
    found = _PART.fullmatch(path.name)
    if found is None:
        return [path]
    count = int(found["count"])
    names = (f"{found['stem']}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1))
    return [path.with_name(name) for name in names]


def is_later_part(path: Path) -> bool:
    """Return whether a file is a part of a model, and not its first."""
    found = _PART.fullmatch(path.name)
    return found is not None and int(found["number"]) > 1
