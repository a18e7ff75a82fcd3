"""Time from the command to the first token on a GPU, including loading the weights.

python -m benchmarks.gpu_startup [--model qwen3-8b]

Each start is a separate process. It loads a checkpoint of random weights that was just written, so
its files are read from the system's cache. The first start finds no compiled kernels; the others
find them in Triton's cache.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch

from benchmarks.common import RESULTS, print_table, report
from benchmarks.models import write_random_model
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
    """Durations of one start, in seconds."""

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
    with TemporaryDirectory() as checkpoint, TemporaryDirectory() as cache:
        write_random_model(Path(checkpoint), PRESETS[model], torch.bfloat16, device="cuda")
        names = ["the first, nothing compiled", *["later"] * repeats]
        starts = [start(name, Path(checkpoint), Path(cache)) for name in names]
    print_table(
        f"{model}, {torch.cuda.get_device_name()}: seconds",
        ["", "imports", "until ready", "first token", "from the command on"],
        [
            [each.name, *(f"{value:.2f}" for value in list(asdict(each).values())[1:])]
            for each in starts
        ],
    )
    gpu = torch.cuda.get_device_name()
    report(
        f"gpu_startup-{model}",
        {"model": model, "gpu": gpu, "starts": [asdict(each) for each in starts]},
        folder,
    )


if __name__ == "__main__":
    main()
