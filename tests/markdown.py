"""What the tests of the documents need to read of Markdown."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(text, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def broken_links(name):
    """Relative links of a document that lead to no file, folder or heading."""
    targets = re.findall(r"\]\(([^)\s]+)\)", read(name))
    return [link for link in targets if "://" not in link and not _resolves(link, ROOT / name)]


def _resolves(link, document):
    path, _, heading = link.partition("#")
    target = document.parent / path if path else document
    if not heading:
        return target.exists()
    return target.is_file() and heading in map(
        _anchor, re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
    )


def _anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
