"""The command ``minimal-vllm``."""

import logging

import click

from minimal_vllm import __version__
from minimal_vllm.cli.ablate import ablate
from minimal_vllm.cli.bench import bench
from minimal_vllm.cli.chat import chat
from minimal_vllm.cli.check import check
from minimal_vllm.cli.errors import Commands
from minimal_vllm.cli.generate import generate
from minimal_vllm.cli.info import info
from minimal_vllm.cli.learn import learn
from minimal_vllm.cli.serve import serve
from minimal_vllm.cli.simulate import simulate
from minimal_vllm.cli.trace import trace
from minimal_vllm.cli.view import view


@click.group(
    cls=Commands,
    name="minimal-vllm",
    commands=[
        *(generate, chat, serve, bench, view, trace, simulate, ablate),
        *(check, learn, info),
    ],
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def main() -> None:
    """Run language models with an engine small enough to read.

    Without --model, a small model that is built in is used.
    """
    logging.basicConfig(format="minimal-vllm: %(levelname)s: %(message)s")
