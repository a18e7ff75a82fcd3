"""What the tests of the documents need to read of Markdown."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(text, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def broken_links(text):
    """Relative links that lead to no file, folder or heading."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in targets if "://" not in link and not _resolves(link)]


def _resolves(link):
    path, _, heading = link.partition("#")
    target = ROOT / path
    if not heading:
        return target.exists()
    return target.is_file() and heading in map(_anchor, re.findall(r"^#+ (.*)$", read(path), re.M))


def _anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
