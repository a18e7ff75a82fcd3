"""Reads the novels and turns them into clean chapters of plain prose.

The corpus comes from many typists: some novels are wrapped at 70 columns, some hold one paragraph
per line; some put dialogue in 'single' quotes; all carry traces of conversion. A small model
spends its few parameters on whatever varies, so the text is made uniform first: paragraphs
separated by a blank line, "double" quotes for dialogue, dashes without spaces, no headings.
"""

import itertools
import re
from pathlib import Path

MIN_CHAPTER_CHARS = 1000  # anything shorter between two headings is a title page or contents
MAX_WRAP_WIDTH = 120  # a novel with longer lines has one paragraph per line

# Replaced character by character before anything else looks at the text.
QUOTES = {"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "`": "'", "\u2013": "—"}
WHITESPACE_AND_MARKUP = {"\xa0": " ", "\t": " ", "\f": "\n", "_": "", "*": ""}
WRONGLY_DECODED = {"ť": "é", "š": "ä", "Ű": "ô", "Ų": "ö", "Ž": "ë", "Ă": "é"}  # "rťgime"
CHARACTERS = str.maketrans(QUOTES | WHITESPACE_AND_MARKUP | WRONGLY_DECODED)
HEADING = re.compile(
    r"(?:(?:CHAPTER|Chapter|BOOK|Book|PART|Part|VOLUME|Volume|Phase)\s+(?:the\s+)?[A-Z\d].{0,70}"
    r"|[IVXLC]{1,7}\.?|\d{1,3}\.?)"
)
FOREIGN = re.compile(r"[^\x00-\xff—œŒ]")  # Greek, long s, letters lost in conversion
SPACED_DASH = re.compile(r" *(?:--+|—) *| - | -$")
ELLIPSIS = re.compile(r" ?\.(?: ?\.)+")
STRAY_SPACE = re.compile(r"(?<=n't) (?=[.,;:?!])")  # the corpus has "don't ," for "don't,"

ELIDED = r"(?:tis|twas|twere|twill|em|un|ee|d|ll|s|re|ve)\b"  # words that begin by an apostrophe
OPENING = rf"(?:^|(?<=[\s—(]))'(?!{ELIDED})"
SPEECH = rf"((?:[^']|(?<=\w)'|'(?={ELIDED}))+?[.,!?;:—])"  # with the apostrophes inside it
SINGLE_QUOTE = re.compile(rf"{OPENING}{SPEECH}'(?!\w)", re.IGNORECASE)


def read_chapters(path: Path) -> list[str]:
    """The novel's chapters in order; paragraphs are separated by blank lines."""
    text = path.read_text(encoding="utf-8").translate(CHARACTERS)
    chapters: list[list[str]] = [[]]
    for paragraph in _paragraphs(text):
        if HEADING.fullmatch(paragraph):
            chapters.append([])
        elif not _is_noise(paragraph):
            chapters[-1].append(_tidy(paragraph))
    if _speaks_in_single_quotes(text):
        chapters = [[_to_double_quotes(paragraph) for paragraph in c] for c in chapters]
    joined = ["\n\n".join(chapter) for chapter in chapters]
    return [chapter for chapter in joined if len(chapter) >= MIN_CHAPTER_CHARS]


def _paragraphs(text: str) -> list[str]:
    """Undoes the line wrapping; verse keeps its line breaks where blank lines show what it is."""
    lines = [line.rstrip() for line in text.split("\n")]
    filled = [line for line in lines if line]
    width = sorted(map(len, filled))[int(0.95 * len(filled))]
    wrapped = width <= MAX_WRAP_WIDTH
    blank_separated = len(lines) - len(filled) > 0.1 * len(filled)

    paragraphs: list[str] = []
    for block in re.split(r"\n{2,}", "\n".join(lines).strip("\n")):
        block_lines = block.split("\n")
        if wrapped and blank_separated:
            verse = max(map(len, block_lines)) < 0.8 * width
            pieces = ["\n".join(line.strip() for line in block_lines)]
            pieces = pieces if verse else [pieces[0].replace("\n", " ")]
        else:
            pieces = _unwrap(block_lines, width) if wrapped else [x.strip() for x in block_lines]
        for piece in pieces:
            if paragraphs and piece[0].islower() and not HEADING.fullmatch(paragraphs[-1]):
                paragraphs[-1] += " " + piece  # broken in the middle of a sentence
            else:
                paragraphs.append(piece)
    return paragraphs


def _unwrap(lines: list[str], width: int) -> list[str]:
    """Wrapped lines without blank lines between paragraphs -> one string per paragraph.

    A paragraph ends where the next line's first word would still have fitted on the line.
    """
    paragraphs = [lines[0].strip()]
    for line, following in itertools.pairwise(lines):
        fits = len(line) + 1 + len(following.split(maxsplit=1)[0]) <= width
        new_speaker = line.endswith('"') and following.startswith('"')
        heading = HEADING.fullmatch(line.strip()) or HEADING.fullmatch(following.strip())
        mid_sentence = line[-1].isalnum() and len(line) > 0.8 * width
        if heading or new_speaker or following[0] == " " or (fits and not mid_sentence):
            paragraphs.append(following.strip())
        else:
            paragraphs[-1] += " " + following
    return paragraphs


def _is_noise(paragraph: str) -> bool:
    """Titles, rows of figures, and passages in other alphabets."""
    title = len(paragraph) < 80 and paragraph[-1].isalnum()
    return title or paragraph == paragraph.upper() or FOREIGN.search(paragraph) is not None


def _tidy(paragraph: str) -> str:
    paragraph = re.sub(r"[^\S\n]+", " ", paragraph)
    paragraph = SPACED_DASH.sub("—", paragraph)
    paragraph = ELLIPSIS.sub("...", paragraph)
    return STRAY_SPACE.sub("", paragraph).strip()


def _speaks_in_single_quotes(text: str) -> bool:
    return len(re.findall(r"^ *'\w", text, re.M)) > len(re.findall(r'^ *"\w', text, re.M))


def _to_double_quotes(paragraph: str) -> str:
    """Gives 'So,' said he. the marks of "So," said he.; apostrophes stay.

    A quotation inside a speech gets single marks, but not always both: the pattern sees no nesting.
    """
    paragraph = SINGLE_QUOTE.sub(r'"\1"', paragraph.replace('"', "'"))
    # A speech of several paragraphs closes only the last.
    return re.sub(rf"^'(?!{ELIDED})", '"', paragraph, flags=re.IGNORECASE)
