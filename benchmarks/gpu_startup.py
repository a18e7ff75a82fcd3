"""Time from the command to the first token on a GPU, and until a server is ready.

python -m benchmarks.gpu_startup [--model qwen3-8b]

Each start is a separate process. It loads a checkpoint of random weights that was just written, so
its files are read from the system's cache. The first start of each kind finds no compiled kernels;
the others find them in Triton's cache.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

import click
import torch

from benchmarks.common import RESULTS, print_table, report
from benchmarks.models import write_random_model
from benchmarks.server import serving
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm_lab.sim.presets import PRESETS

PROGRAM = """
import json, sys, time
times = [time.time()]
from minimal_vllm import LLM, SamplingParams
times.append(time.time())
llm = LLM(sys.argv[1], skip_tokenizer_init=True, device="cuda")
times.append(time.time())
llm.generate([[1, 2, 3, 4]], SamplingParams(max_tokens=1, ignore_eos=True), use_tqdm=False)
times.append(time.time())
print(json.dumps(times))
"""
"""Program of each start: prints the times between its phases."""


@dataclass(frozen=True)
class Start:
    """Durations of one start of ``LLM()``, in seconds."""

    name: str
    imports: float
    """Time to import the package."""
    ready: float
    """Time to load weights, allocate the cache, compile kernels and record graphs."""
    first_token: float
    """Time to generate the first token."""
    total: float
    """Time from the start of the process to the first token."""


def start(name: str, folder: Path, triton_cache: Path) -> Start:
    """Start an engine in a new process.

    Args:
        name: Name of the row in the table.
        folder: Checkpoint to load.
        triton_cache: Folder of compiled kernels.
    """
    environment = {**os.environ, "TRITON_CACHE_DIR": str(triton_cache)}
    begun = time.time()
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    running, imported, ready, done = json.loads(output.splitlines()[-1])
    return Start(name, imported - running, ready - imported, done - ready, done - begun)


@dataclass(frozen=True)
class ServerStart:
    """Duration of one start of ``serve``, in seconds."""

    name: str
    healthy: float
    """Time from the start of the process until ``/health`` answers."""


def start_server(name: str, folder: Path, triton_cache: Path) -> ServerStart:
    """Start a server in a new process, and end it when it is ready.

    Args:
        name: Name of the row in the table.
        folder: Checkpoint to load, with a tokenizer.
        triton_cache: Folder of compiled kernels.
    """
    begun = time.time()
    with serving(str(folder), variables={"TRITON_CACHE_DIR": str(triton_cache)}) as server:
        urlopen(f"{server.url}/health", timeout=60).close()
        healthy = time.time() - begun
        server.stop()
    return ServerStart(name, healthy)


def add_tokenizer(folder: Path) -> None:
    """Add the built-in model's tokenizer to a checkpoint, since a server needs one."""
    for file in DEMO_MODEL_DIR.glob("tokenizer*"):
        shutil.copy(file, folder)


@click.command()
@click.option("--model", type=click.Choice(list(PRESETS)), default="qwen3-0.6b", show_default=True)
@click.option(
    "--repeats", default=2, show_default=True, help="Number of starts with compiled kernels."
)
@click.option(
    "--folder", type=click.Path(path_type=Path), default=RESULTS, help="Folder for the results."
)
def main(model: str, repeats: int, folder: Path) -> None:
    """Time several starts."""
    names = ["the first, nothing compiled", *["later"] * repeats]
    with (
        TemporaryDirectory() as checkpoint,
        TemporaryDirectory() as cache,
        TemporaryDirectory() as server_cache,
    ):
        checkpoint_folder = Path(checkpoint)
        write_random_model(checkpoint_folder, PRESETS[model], torch.bfloat16, device="cuda")
        add_tokenizer(checkpoint_folder)
        starts = [start(name, checkpoint_folder, Path(cache)) for name in names]
        servers = [start_server(name, checkpoint_folder, Path(server_cache)) for name in names]
    gpu = torch.cuda.get_device_name()
    print_table(
        f"{model}, {gpu}, LLM(): seconds",
        ["", "imports", "until ready", "first token", "from the command on"],
        [
            [each.name, *(f"{value:.2f}" for value in list(asdict(each).values())[1:])]
            for each in starts
        ],
    )
    print_table(
        f"{model}, {gpu}, serve: seconds",
        ["", "until /health answers"],
        [[each.name, f"{each.healthy:.2f}"] for each in servers],
    )
    report(
        f"gpu_startup-{model}",
        {
            "model": model,
            "gpu": gpu,
            "starts": [asdict(each) for each in starts],
            "servers": [asdict(each) for each in servers],
        },
        folder,
    )


if __name__ == "__main__":
    main()
