"""``minimal-vllm trace``: convert recorded traces."""

from pathlib import Path

import click

from minimal_vllm.cli.commands import Commands
from minimal_vllm_lab.trace.perfetto import export_perfetto
from minimal_vllm_lab.trace.reader import open_trace

TRACE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Commands, short_help="Convert recorded traces.")
def trace() -> None:
    """Convert files that --trace has recorded; 'minimal-vllm view' shows them."""


@trace.command(short_help="Convert a trace for Perfetto and chrome://tracing.")
@click.argument("trace_file", metavar="TRACE", type=TRACE)
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The JSON file to write.",
)
def export(trace_file: Path, output: Path) -> None:
    """Convert TRACE to a JSON file for https://ui.perfetto.dev and chrome://tracing."""
    with open_trace(trace_file) as (header, lines), output.open("w", encoding="utf-8") as file:
        count = export_perfetto(header, lines, file)
    click.echo(f"{output}: {count:,} events")
