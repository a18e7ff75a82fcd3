"""Speed on a CPU: this engine compared with llama.cpp, on the same weights.

npm install --prefix benchmarks/results node-llama-cpp
python -m benchmarks.cpu_vs_llama_cpp --threads 1

llama.cpp is the one that node-llama-cpp ships, compiled for this CPU. The weights are those of
SmolLM2-135M, rounded to bfloat16, as published, and stored as float32, bfloat16 and Q8_0 for
llama.cpp. Ours lie in huge pages from the beginning, as they do in a server that has run for a few
seconds. All contenders run each workload in turn, in each repeat, greedily and without stopping at
end-of-sequence tokens. Their outputs must agree with ours to the extent that is reported: llama.cpp
keeps its KV cache in half precision and rounds activations to the type of the weights.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Protocol

import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize

from benchmarks.common import RESULTS, num_cores, print_table, report
from benchmarks.contenders import Job, Ours
from minimal_vllm.device.huge_pages import use_huge_pages
from minimal_vllm.model.fetch import fetch

SCRIPT = Path(__file__).with_name("llama_cpp.mjs")
PACKAGE = RESULTS / "node_modules" / "node-llama-cpp"
TYPES = ("F32", "BF16", "Q8_0")
"""Types in which llama.cpp gets the weights."""
MAX_SEQS, CONTEXT = 32, 1024
VOCABULARY = 40_000


@dataclass(frozen=True)
class Workload:
    """Requests that start together, and what their time is divided by."""

    name: str
    jobs: list[Job]
    without: list[Job] | None = None
    """Jobs whose time is subtracted, such as the prompts alone. None: nothing."""
    steps: int = 1
    """Number of steps that the rest of the time is divided by."""


def make_workloads(step_tokens: int) -> list[Workload]:
    """Return the workloads; a decoding step's time is measured over ``step_tokens`` steps."""
    random = Random(0)

    def draw(length: int) -> list[int]:
        return random.choices(range(1000, VOCABULARY), k=length)

    workloads = []
    for size in (1, 2, 4, 8, 16, 32):
        prompts = [draw(16) for _ in range(size)]
        short, long = ([Job(each, n) for each in prompts] for n in (1, 1 + step_tokens))
        workloads.append(Workload(f"a step of {size}", long, short, step_tokens))
    workloads.append(Workload("a prompt of 512", [Job(draw(512), 1)]))
    for size, shared in ((32, 64), (16, 512)):
        beginning = draw(shared)
        jobs = [Job(beginning + draw(16), 32) for _ in range(size)]
        workloads.append(Workload(f"{size} sharing {shared}", jobs))
    return workloads


# ---- the contenders -----------------------------------------------------------------------------


class Timed(Protocol):
    """Engine that completes jobs and says how long it took."""

    name: str

    def complete(self, jobs: Sequence[Job]) -> tuple[float, list[list[int]]]:
        """Return the seconds, and the output tokens of each job."""
        ...


class OurEngine:
    """This engine.

    Args:
        name: name in the tables.
        path: GGUF file.
        cpu_time: whether to measure CPU time, of all threads, instead of the clock's.
        quantization: quantization of the weights. Default: half precision.
    """

    def __init__(
        self, name: str, path: Path, cpu_time: bool = False, quantization: str | None = None
    ) -> None:
        self.name = name
        self._clock = time.process_time if cpu_time else time.perf_counter
        self._engine = Ours(path, "float32", quantization=quantization)

    def complete(self, jobs: Sequence[Job]) -> tuple[float, list[list[int]]]:
        """Complete all jobs in one batch."""
        begun = self._clock()
        outputs = self._engine.complete(jobs)
        return self._clock() - begun, outputs


class LlamaCpp:
    """llama.cpp, in a process of its own, with a KV slot for each request.

    Args:
        name: name in the tables.
        package: folder of node-llama-cpp.
        path: GGUF file.
        threads: number of threads.
        cpu_time: whether to measure CPU time, of all threads, instead of the clock's.
    """

    def __init__(
        self, name: str, package: Path, path: Path, threads: int, cpu_time: bool = False
    ) -> None:
        self.name = name
        self._seconds = "cpu_seconds" if cpu_time else "seconds"
        sizes = map(str, (threads, MAX_SEQS, CONTEXT))
        self._process = subprocess.Popen(
            ["node", str(SCRIPT), str(package), str(path), *sizes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def complete(self, jobs: Sequence[Job]) -> tuple[float, list[list[int]]]:
        """Complete all jobs in one batch; the time is that of the process."""
        assert self._process.stdin
        asked = [{"prompt": job.prompt, "num_tokens": job.num_tokens} for job in jobs]
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer[self._seconds], answer["outputs"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("node-llama-cpp ended: see above, and --help for how to install it")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def convert(source: Path, target: Path, type_name: str) -> None:
    """Write a GGUF file with the matrices of ``source``, rounded to bfloat16, in another type."""
    reader, kind = GGUFReader(source), GGMLQuantizationType[type_name]
    bfloat16 = GGMLQuantizationType.BF16
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        of_array = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=of_array)
    for tensor in reader.tensors:
        numbers = dequantize(tensor.data, tensor.tensor_type)
        if numbers.ndim == 1:
            writer.add_tensor(tensor.name, numbers)
            continue
        published = dequantize(quantize(numbers, bfloat16), bfloat16)
        writer.add_tensor(tensor.name, quantize(published, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def converted(source: Path) -> dict[str, Path]:
    """Return the files of all types, which are written at first use."""
    folder = Path(tempfile.gettempdir()) / "minimal-vllm-benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{source.stem}-bf16-as-{name.lower()}.gguf" for name in TYPES}
    for name, path in files.items():
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            convert(source, unfinished, name)
            unfinished.rename(path)
    return files


# ---- the comparison -----------------------------------------------------------------------------


def measure(contender: Timed, workload: Workload) -> tuple[float, list[list[int]]]:
    """Return the seconds that a workload's table entry is, and its outputs."""
    base = contender.complete(workload.without)[0] if workload.without else 0.0
    seconds, outputs = contender.complete(workload.jobs)
    return (seconds - base) / workload.steps, outputs


def compare(
    contenders: Sequence[Timed], workloads: Sequence[Workload], repeats: int
) -> dict[str, dict[str, Any]]:
    """Run all workloads; return each contender's seconds and agreement with the first one."""
    for contender in contenders:
        contender.complete([Job(list(range(1000, 1016)), 2)])  # to warm up
    results: dict[str, dict[str, Any]] = {}
    for workload in workloads:
        seconds: dict[str, list[float]] = {each.name: [] for each in contenders}
        same: dict[str, int] = {}
        for _ in range(repeats):
            first: list[list[int]] | None = None
            for contender in contenders:
                took, outputs = measure(contender, workload)
                seconds[contender.name].append(took)
                first = first or outputs
                same[contender.name] = sum(a == b for a, b in zip(outputs, first, strict=True))
        medians = {name: round(1e3 * median(each), 1) for name, each in seconds.items()}
        print(f"{workload.name}: {medians} ms", flush=True)
        results[workload.name] = {"seconds": seconds, "same": same, "of": len(workload.jobs)}
    return results


def print_results(results: dict[str, dict[str, Any]]) -> None:
    """Print milliseconds per workload, and how many outputs are the same as ours."""
    names = list(next(iter(results.values()))["seconds"])
    print_table(
        "Milliseconds, medians (outputs that are the first contender's)",
        ["", *names],
        [
            [
                workload,
                *(
                    f"{1e3 * median(each['seconds'][name]):,.0f} ({each['same'][name]})"
                    for name in names
                ),
            ]
            for workload, each in results.items()
        ],
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return the results that are written to the file."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    files = converted(options.gguf or next(fetch("smollm2").glob("*.gguf")))
    others = [
        LlamaCpp(
            f"llama.cpp {name}", options.package, files[name], options.threads, options.cpu_time
        )
        for name in options.types
    ]
    ours = [
        OurEngine("ours", files["BF16"], options.cpu_time),
        OurEngine("ours int8", files["BF16"], options.cpu_time, quantization="int8"),
    ]
    use_huge_pages(rest=0)
    workloads = [
        each
        for each in make_workloads(options.step_tokens)
        if not options.only or each.name in options.only
    ]
    results = compare([*ours, *others], workloads, options.repeats)
    for other in others:
        other.close()
    print_results(results)
    facts = {"options": {key: str(value) for key, value in vars(options).items()}}
    report(f"cpu_vs_llama_cpp_{options.threads}", facts | {"workloads": results}, options.results)
    return results


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--gguf", type=Path, help="model to convert [default: SmolLM2-135M, fetched]"
    )
    parser.add_argument(
        "--package",
        type=Path,
        default=PACKAGE,
        help="folder of node-llama-cpp; npm install --prefix benchmarks/results node-llama-cpp",
    )
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure CPU time, on a machine with other work"
    )
    parser.add_argument("--step-tokens", type=int, default=16, help="steps per measurement")
    parser.add_argument("--only", nargs="*", help="names of the workloads to run [default: all]")
    parser.add_argument(
        "--types", nargs="*", choices=TYPES, default=TYPES, help="llama.cpp's types [default: all]"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
