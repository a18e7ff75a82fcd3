"""The prompts of ``minimal-vllm generate``: arguments, a file or standard input."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

Prompt = str | dict[str, Any]
"""A text, or one of the mappings that ``LLM.generate`` takes."""


def read_prompts(arguments: Sequence[str], input_file: Path | None) -> list[Prompt]:
    """Return the prompts of the command line, at least one.

    Args:
        arguments: the prompts given as arguments; ``-`` stands for standard input.
        input_file: file with prompts, or None.

    Raises:
        click.UsageError: there are no prompts, or both arguments and a file.
        ValueError: the file can't be read, or a line has the wrong form; the message names both.
    """
    if input_file is not None:
        if arguments:
            raise click.UsageError("Give either prompts or --input, not both.")
        return _read_file(input_file)
    if not arguments and sys.stdin.isatty():
        raise click.UsageError("Give a prompt, --input FILE, or text on standard input.")
    return [_read_stdin() if prompt == "-" else prompt for prompt in arguments or ["-"]]


def _read_stdin() -> str:
    text = sys.stdin.read().rstrip("\n")  # added by an editor or by echo
    if not text:
        raise click.UsageError("Standard input is empty: it should hold a prompt.")
    return text


def _read_file(path: Path) -> list[Prompt]:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} can't be read: {reason}") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no prompt: there should be one on each line")
    if path.suffix != ".jsonl":
        return [line.removesuffix("\r") for _, line in lines]
    return [_parse(line, f"{path}, line {number}") for number, line in lines]


def _parse(line: str, place: str) -> Prompt:
    try:
        prompt = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}") from error
    match prompt:
        case {"prompt": str(text), **others} if not others:
            return text
        case {"prompt": str()} | {"prompt_token_ids": list()}:
            return dict(prompt)
    raise ValueError(
        f'{place} should be an object with a "prompt" that is a text, or with "prompt_token_ids"'
    )
