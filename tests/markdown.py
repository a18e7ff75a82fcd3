"""What the tests of the documents need to read of Markdown."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(text, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands(block):
    """The commands of a block of shell, one on each line, or more that end with a backslash."""
    return [line for line in block.replace("\\\n", "").splitlines() if line.strip()]


def shown_commands(block):
    """The commands of a ``console`` block, and what it shows that each prints."""
    _, *parts = re.split(r"^\$ ((?:.*\\\n)*.*\n)", block, flags=re.MULTILINE)
    return list(zip(parts[::2], parts[1::2], strict=True))


def is_as_shown(shown, printed):
    """Whether a command has printed what a page shows, but for numbers and what ``[…]`` leaves out.

    On a line of its own, ``[…]`` stands for any number of lines; on a line with other text, for any
    text. Numbers differ between machines, and so may the blanks that align them.
    """
    patterns = [
        r"(?:.*\n)*" if line == "[…]" else re.escape(line).replace(re.escape("[…]"), ".*") + r"\n"
        for line in without_numbers(shown)
    ]
    text = "".join(f"{line}\n" for line in without_numbers(printed))
    return re.fullmatch("".join(patterns), text) is not None


def without_numbers(text):
    """The lines of a text with ``#`` for each number, and one blank for several."""
    lines = re.sub(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?", "#", text.strip()).splitlines()
    return [" ".join(line.split()) for line in lines]


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
