"""The command ``minimal-vllm``."""

import logging

import click

from minimal_vllm import __version__
from minimal_vllm.cli.chat import chat
from minimal_vllm.cli.commands import ENTRY_POINT_GROUP, Commands
from minimal_vllm.cli.fetch import fetch
from minimal_vllm.cli.generate import generate
from minimal_vllm.cli.info import info
from minimal_vllm.cli.serve import serve


@click.group(
    cls=Commands,
    name="minimal-vllm",
    commands=[generate, chat, serve, info, fetch],
    entry_point_group=ENTRY_POINT_GROUP,
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def main() -> None:
    """Run language models with an engine small enough to read.

    Without --model, a small built-in model is used.
    """
    logging.basicConfig(format="minimal-vllm: %(levelname)s: %(message)s")
