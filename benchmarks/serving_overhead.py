"""Where each microsecond of a token goes when it is served over HTTP, process by process.

python -m benchmarks.serving_overhead

By default the model costs next to nothing: one small layer of random weights. Scheduler, pool,
sampler and all of the server are real. Requests arrive at random, from client processes of their
own, at rates from idle to saturation (``inf``: all at once). For each rate there is a table of
latencies, and one of the CPU time per token of each process and thread.

``--profile`` samples the threads of the server in a run of its own, and tells which modules used
the CPU. ``--model`` takes a shape of ``benchmarks.models``, in random weights, to see what clients
get of a real one. Options after ``--`` go to the server.
"""

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import psutil

from benchmarks.common import RESULTS, print_table, report
from benchmarks.load_client import Answer, Traffic, send_traffic
from benchmarks.models import SHAPES, wordy_model_folder
from benchmarks.server import Server, serving
from minimal_vllm.demo import DEMO_MODEL_DIR

WEIGHTLESS = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 8192,
}
"""Changes to the built-in model's configuration that make it cost next to nothing."""
NUM_MODULES = 14
"""Number of modules in the profile's table."""
PROFILER = Path(__file__).parent / "profiling"


@dataclass(frozen=True)
class Run:
    """What clients saw at one rate, and what it cost the server. Times are in seconds."""

    rate: float
    num_requests: int
    failed: int
    errors: list[str]
    duration: float
    tokens: int
    events: int
    """Number of events that carried the tokens; fewer if the server fell behind."""
    ttft: tuple[float, float]
    """Median and 99th percentile of the time to the first token."""
    tpot: float
    """Mean time per token after the first."""
    itl: tuple[float, float]
    """Median and 99th percentile of the gaps between events."""
    cpu: dict[str, float]
    """CPU time by process and thread."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of the whole run."""
        return self.tokens / self.duration


def measure(server: Server, traffic: Traffic, num_clients: int) -> Run:
    """Send the traffic, and measure it on both sides."""
    before = cpu_times(server.process)
    answers = send_traffic(server.url, traffic, num_clients)
    cpu = Counter(cpu_times(server.process))
    cpu.subtract(before)
    return summarize(traffic, answers, {name: used for name, used in cpu.items() if used > 0})


def summarize(traffic: Traffic, answers: Sequence[Answer], cpu: dict[str, float]) -> Run:
    """Return the statistics of the answers that are complete."""
    whole = [each for each in answers if not each.error]
    if not whole:
        raise RuntimeError(f"no request was answered: {answers[0].error}")
    first = min(each.sent for each in whole)
    itl = [gap for each in whole for gap in each.itl] or [0.0]
    ttft = np.percentile([each.ttft for each in whole], [50, 99])
    gaps = np.percentile(itl, [50, 99])
    return Run(
        rate=traffic.rate,
        num_requests=traffic.num_requests,
        failed=len(answers) - len(whole),
        errors=sorted({each.error for each in answers if each.error})[:3],
        duration=max(each.events[-1] for each in whole) - first,
        tokens=sum(each.num_tokens for each in whole),
        events=sum(len(each.events) for each in whole),
        ttft=(float(ttft[0]), float(ttft[1])),
        tpot=fmean(each.tpot for each in whole),
        itl=(float(gaps[0]), float(gaps[1])),
        cpu=cpu,
    )


# ---- CPU time -----------------------------------------------------------------------------------


def cpu_times(root: psutil.Process) -> dict[str, float]:
    """Return the CPU seconds so far of each process of the server, and of its main thread."""
    times: dict[str, float] = {}
    for place, process in enumerate([root, *root.children(recursive=True)]):
        name = f"process {place}"
        with process.oneshot():
            used = process.cpu_times()
            times[name] = used.user + used.system
            main = next(each for each in process.threads() if each.id == process.pid)
        times[f"{name}, main thread"] = main.user_time + main.system_time
    return times


@contextmanager
def profiling(folder: str) -> Iterator[None]:
    """Let Python processes that start now write a profile to a folder."""
    before = os.environ.get("PYTHONPATH", "")
    os.environ["CPU_PROFILE"] = folder
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PROFILER), before)))
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = before
        del os.environ["CPU_PROFILE"]


Profile = dict[str, dict[str, float]]
"""CPU seconds by process and thread, and by module."""


def read_profile(folder: Path) -> Profile:
    """Return the profiles that the processes have written, the busiest threads first."""
    threads: dict[str, Counter[str]] = {}
    for place, path in enumerate(sorted(folder.glob("*.json"), key=lambda path: int(path.stem))):
        for thread, module, seconds in json.loads(path.read_text()):
            threads.setdefault(f"process {place}, {thread}", Counter())[module] += seconds
    busiest = sorted(threads.items(), key=lambda item: -item[1].total())
    return {name: dict(modules.most_common(NUM_MODULES)) for name, modules in busiest[:4]}


# ---- the command --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return the results that are written to the file."""
    options = parse(arguments)
    flags, vocab_size = model_flags(options.model)
    flags += ["--max-waiting-requests=1000000", *options.server]
    runs = []
    with serving(*flags) as server:
        measure(server, warm_up(make_traffic(options, float("inf"), vocab_size)), options.clients)
        for rate in options.rates:
            traffic = make_traffic(options, rate, vocab_size)
            runs.append(measure(server, traffic, options.clients))
            print_run(runs[-1])
    print_runs(runs)
    profile: Profile = {}
    if options.profile:
        profile = measure_profile(
            options, flags, make_traffic(options, max(options.rates), vocab_size)
        )
    results = {"runs": [asdict(run) for run in runs], "profile": profile, "server": flags}
    report("serving_overhead", results, options.results)
    return results


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", default="weightless", help=f"weightless, {', '.join(SHAPES)}, or a folder"
    )
    parser.add_argument("--rates", type=float, nargs="+", default=[5.0, 20.0, 80.0, float("inf")])
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds of arrivals per rate")
    parser.add_argument("--requests", type=int, default=1000, help="most requests per rate")
    parser.add_argument("--prompt", type=int, default=64, help="number of tokens in a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="number of tokens per output")
    parser.add_argument("--clients", type=int, default=1, help="number of client processes")
    parser.add_argument("--profile", action="store_true", help="profile the highest rate")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("server", nargs="*", help="options of the server, after --")
    return parser.parse_args(arguments)


def make_traffic(options: argparse.Namespace, rate: float, vocab_size: int) -> Traffic:
    """Return as much traffic as fits into the seconds of one rate."""
    count = max(1, min(options.requests, round(min(rate, 1e6) * options.seconds)))
    return Traffic(rate, count, options.prompt, options.tokens, vocab_size)


def warm_up(traffic: Traffic) -> Traffic:
    """Return a little traffic of the same kind, all at once."""
    count = min(traffic.num_requests, 100)
    return Traffic(traffic.rate, count, traffic.prompt_len, 8, traffic.vocab_size, seed=1)


def model_flags(model: str) -> tuple[list[str], int]:
    """Return the server's options for a model, and the size of its vocabulary."""
    if model == "weightless":
        config = json.loads((DEMO_MODEL_DIR / "config.json").read_text())
        overrides = f"--hf-overrides={json.dumps(WEIGHTLESS)}"
        blocks = "--num-gpu-blocks-override=32768"
        return ["--load-format=dummy", overrides, blocks], config["vocab_size"]
    folder = wordy_model_folder(model)
    config = json.loads((folder / "config.json").read_text())
    return [str(folder), "--load-format=dummy"], config["vocab_size"]


def measure_profile(options: argparse.Namespace, flags: Sequence[str], traffic: Traffic) -> Profile:
    """Serve the traffic once more, and print where the CPU time went."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        with profiling(folder):
            server = stack.enter_context(serving(*flags))
        measure(server, warm_up(traffic), options.clients)
        (Path(folder) / "begin").touch()
        run = measure(server, traffic, options.clients)
        server.stop()
        profile = read_profile(Path(folder))
    print_profile(profile, run.tokens)
    return profile


def print_run(run: Run) -> None:
    """Print the CPU time of a run's tokens, below the most important of what the clients saw."""
    rows = [[name, f"{1e6 * used / run.tokens:.1f}"] for name, used in run.cpu.items()]
    title = (
        f"{run.rate:g} requests/s: {run.tokens_per_second:,.0f} tokens/s, median TTFT "
        f"{1e3 * run.ttft[0]:.1f} ms, TPOT {1e3 * run.tpot:.1f} ms, p99 of ITL "
        f"{1e3 * run.itl[1]:.1f} ms"
    )
    print_table(title, ["CPU time per token", "µs"], rows)
    for error in run.errors:
        print(f"{run.failed} failed: {error[:500]}")


def print_runs(runs: Sequence[Run]) -> None:
    """Print what the clients saw, with a row for each rate."""
    print_table(
        "What clients see (ms)",
        ["requests/s", "failed", "tokens/s", "TTFT", "p99", "TPOT", "ITL", "p99", "tokens/event"],
        [
            [
                f"{run.rate:g}",
                str(run.failed),
                f"{run.tokens_per_second:,.0f}",
                *(f"{1e3 * each:.1f}" for each in (*run.ttft, run.tpot, *run.itl)),
                f"{run.tokens / run.events:.2f}",
            ]
            for run in runs
        ],
    )


def print_profile(profile: Profile, num_tokens: int) -> None:
    """Print the modules that used most of each thread's CPU time."""
    for thread, modules in profile.items():
        print_table(
            f"{thread}: CPU time per token by module",
            ["", "µs"],
            [[name, f"{1e6 * used / num_tokens:.1f}"] for name, used in modules.items()],
        )


if __name__ == "__main__":
    main()
