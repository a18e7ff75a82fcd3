"""Peak memory while loading, and time from the command to an answer.

python -m benchmarks.memory_and_startup

Memory: a fresh process loads a checkpoint of about 500 MB, then fills its whole KV pool. Its peak
is measured above what it used after its imports. The peak should be the size of the weights, and
then of the weights plus the pool.

Start-up: the wall time of ``minimal-vllm --help``, and the time from the command
``minimal-vllm generate`` with the built-in model to its first character, split into its parts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import MB, RESULTS, print_table, report

BLOCK_SIZE = 16
SHARD_SIZE = "100MB"
"""Size of a file in a sharded checkpoint."""
COMMAND = (sys.executable, "-m", "minimal_vllm")
"""Command line of minimal-vllm."""


@dataclass(frozen=True)
class LoadCase:
    """Checkpoint, and the data type to load it with."""

    stored_dtype: str
    dtype: str
    sharded: bool
    num_layers: int
    """Number of layers in SmolLM2-135M's shape, chosen so that the weights take about 500 MB."""

    @property
    def name(self) -> str:
        """Label of a table's row."""
        return f"{self.stored_dtype} -> {self.dtype}{', sharded' if self.sharded else ''}"


@dataclass(frozen=True)
class LoadedMemory:
    """Memory in bytes. Peaks are measured above the process's memory before loading."""

    weights: int
    pool: int
    peak_of_loading: int
    peak_with_full_pool: int

    @property
    def loading_ratio(self) -> float:
        """Peak while loading divided by the size of the weights; 1 is ideal."""
        return self.peak_of_loading / self.weights

    @property
    def full_ratio(self) -> float:
        """Peak with a full pool divided by the size of weights and pool; 1 is ideal."""
        return self.peak_with_full_pool / (self.weights + self.pool)


def load_cases(layers: int) -> list[LoadCase]:
    """Return the checkpoints to load, in one file and in shards.

    Args:
        layers: Number of layers in float32. In bfloat16 there are twice as many.
    """
    float32, bfloat16 = "float32", "bfloat16"
    return [
        LoadCase(float32, float32, False, layers),
        LoadCase(float32, float32, True, layers),
        LoadCase(bfloat16, bfloat16, False, 2 * layers),
        LoadCase(bfloat16, bfloat16, True, 2 * layers),
        LoadCase(bfloat16, float32, False, layers),
    ]


# ---- memory -------------------------------------------------------------------------------------


def measure_memory(case: LoadCase, num_blocks: int) -> LoadedMemory:
    """Write the checkpoint in one process, and load it in another."""
    with tempfile.TemporaryDirectory() as folder:
        _call(f"write_checkpoint({case!r}, {folder!r})")
        measured = _call(f"load_and_fill({folder!r}, {case.dtype!r}, {num_blocks})")
    return LoadedMemory(**measured)


def write_checkpoint(case: LoadCase, folder: str) -> None:
    """Write the checkpoint of a case. It is called in its own process."""
    import torch

    from benchmarks.models import SHAPES, write_random_model

    shape = {**SHAPES["smollm2-135m"], "num_hidden_layers": case.num_layers}
    dtype = getattr(torch, case.stored_dtype)
    write_random_model(Path(folder), shape, dtype, SHARD_SIZE if case.sharded else "10GB")


def load_and_fill(folder: str, dtype: str, num_blocks: int) -> dict[str, int]:
    """Load a checkpoint and fill the pool; return the fields of ``LoadedMemory``.

    It is called in its own process.
    """
    import psutil

    from minimal_vllm.llm import LLM

    baseline = psutil.Process().memory_info().rss
    llm = LLM(
        folder,
        dtype=dtype,
        device="cpu",
        block_size=BLOCK_SIZE,
        num_gpu_blocks_override=num_blocks,
        skip_tokenizer_init=True,
    )
    peak_of_loading = peak_memory() - baseline
    caches = llm.built.caches  # the system allocates a pool's pages when they are first written
    for tensor in (tensor for cache in caches for tensor in cache):
        tensor.fill_(0)
    config = llm.built.files.config
    return {
        "weights": config.num_parameters * llm.built.dtype.itemsize,
        "pool": num_blocks * BLOCK_SIZE * config.kv_bytes_per_token(dtype),
        "peak_of_loading": peak_of_loading,
        "peak_with_full_pool": peak_memory() - baseline,
    }


def peak_memory() -> int:
    """Return the peak RAM of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, ru_maxrss includes the peak of the parent process
        lines = status.read_text().splitlines()
        (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return int(peak) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _call(expression: str) -> Any:
    """Return the value of an expression of this module, evaluated in a fresh process."""
    code = (
        f"import json; from benchmarks.memory_and_startup import *; print(json.dumps({expression}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# ---- start-up -----------------------------------------------------------------------------------


def time_help() -> float:
    """Return the duration of ``minimal-vllm --help`` in seconds."""
    begun = time.perf_counter()
    subprocess.run([*COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def time_first_token() -> float:
    """Return the seconds from the command to its first character on standard output."""
    arguments = ["generate", "--max-tokens=16", "--seed=0", "It was a dark and stormy night, and"]
    begun = time.perf_counter()
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 1)
        elapsed = time.perf_counter() - begun
        process.stdout.read()
    if not first or process.returncode:
        raise RuntimeError(f"the command printed nothing or failed (exit {process.returncode})")
    return elapsed


def time_startup_parts() -> dict[str, float]:
    """Return the seconds of each part of the way to a first token.

    It is called in its own process.
    """
    begun = time.perf_counter()
    import torch  # noqa: F401 - to time it

    torch_imported = time.perf_counter()
    from benchmarks.stopwatch import Stopwatch
    from minimal_vllm.engine import build
    from minimal_vllm.llm import LLM
    from minimal_vllm.sampling_params import SamplingParams

    imported = time.perf_counter()
    stopwatch = Stopwatch()
    with stopwatch.watch(
        {"config and tokenizer": [(build, "read_model_files")], "weights": [(build, "_load")]}
    ):
        llm = LLM()
    built = time.perf_counter()
    llm.generate(
        "It was a dark and stormy night, and", SamplingParams(max_tokens=1), use_tqdm=False
    )
    stepped = time.perf_counter()
    reading = sum(stopwatch.seconds.values())
    return {
        "import torch": torch_imported - begun,
        "other imports": imported - torch_imported,
        **stopwatch.seconds,
        "rest of the engine": built - imported - reading,
        "first step": stepped - built,
    }


# ---- the command --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return the results that are written to the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=30, help="number of layers in float32")
    parser.add_argument("--blocks", type=int, default=256, help="number of KV blocks")
    parser.add_argument("--repeats", type=int, default=5, help="number of timed starts")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)

    memory = {
        case.name: measure_memory(case, options.blocks) for case in load_cases(options.layers)
    }
    print_memory(memory)
    repeats = range(options.repeats)
    startup = {
        "minimal-vllm --help": [time_help() for _ in repeats],
        "minimal-vllm generate, to the first character": [time_first_token() for _ in repeats],
    }
    parts = [_call("time_startup_parts()") for _ in repeats]
    print_startup(startup, parts)
    results = {
        "memory": {
            name: {
                **asdict(each),
                "loading_ratio": each.loading_ratio,
                "full_ratio": each.full_ratio,
            }
            for name, each in memory.items()
        },
        "startup": startup,
        "parts": parts,
    }
    report("memory_and_startup", results, options.results)
    return results


def print_memory(memory: dict[str, LoadedMemory]) -> None:
    """Print a table with a row for each case."""
    print_table(
        "Peak memory in MB, above the process's memory before",
        ["", "weights", "loading", "ratio", "pool", "with full pool", "ratio to both"],
        [
            [
                name,
                f"{each.weights / MB:.0f}",
                f"{each.peak_of_loading / MB:.0f}",
                f"{each.loading_ratio:.3f}",
                f"{each.pool / MB:.0f}",
                f"{each.peak_with_full_pool / MB:.0f}",
                f"{each.full_ratio:.3f}",
            ]
            for name, each in memory.items()
        ],
    )


def print_startup(startup: dict[str, list[float]], parts: list[dict[str, float]]) -> None:
    """Print medians and extremes of the commands, and of the parts."""
    rows = {**startup, **{f"- {name}": [each[name] for each in parts] for name in parts[0]}}
    print_table(
        "Seconds",
        ["", "median", "min", "max"],
        [
            [name, f"{median(each):.2f}", f"{min(each):.2f}", f"{max(each):.2f}"]
            for name, each in rows.items()
        ],
    )


if __name__ == "__main__":
    main()
