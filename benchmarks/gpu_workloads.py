"""Duration of workloads on a GPU, compared with their floors and with vLLM's times.

python -m benchmarks.gpu_workloads [--model qwen3-8b] [--workload chat] [--without graphs]
    [--quantization fp8] [--tensor-parallel-size 2]

Weights are random, in the shape of a known model, in bfloat16. Prompts are random, outputs have
exact lengths, and the end-of-text token is ignored. The first run of a workload is reported
separately, because the library plans its kernels for each new size in it. Further runs follow until
they fill two seconds, and their median is reported. ``chat`` is not among vLLM's measurements: its
lengths are mostly short and some long, and its requests arrive in a Poisson process.

The floor is the simulator's time for the same schedule on a GPU that always reaches the rates of a
large copy and of a large matrix product, with no time between kernels. Several GPUs have no floor
here, because the simulator knows no sums over GPUs. Seconds are only compared
with vLLM's on the kind of card that vLLM ran on. Fractions of the floor can be compared between
cards.
"""

import gc
import json
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from math import exp, log
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Literal

import click
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import RESULTS, print_table, report
from minimal_vllm.config import EngineConfig
from minimal_vllm.llm import LLM
from minimal_vllm.outputs import RequestOutput
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm_lab.sim.config import Achieved, FleetConfig, SimulationConfig
from minimal_vllm_lab.sim.fixed_workloads import FIXED_WORKLOADS, Workload
from minimal_vllm_lab.sim.job import Job
from minimal_vllm_lab.sim.presets import PRESETS
from minimal_vllm_lab.sim.simulation import make_design, simulate

VLLM = Path(__file__).parent / "measured" / "vllm_h200.json"
"""File of vLLM's times."""
Gpu = Literal["h200", "h100"]
KvDtype = Literal["auto", "fp8"]
COPY: dict[Gpu, float] = {"h200": 4.3 / 4.8, "h100": 3.0 / 3.35}
"""Measured rate of a large copy, as a fraction of the datasheet's bandwidth, by GPU."""
PRODUCT = 790 / 989
"""Measured rate of a large matrix product, as a fraction of the datasheet's rate, on both GPUs."""
CARDS: dict[str, Gpu] = {"NVIDIA H200": "h200", "NVIDIA H100 80GB HBM3": "h100"}
"""Cards that were measured. Other cards of these names have other memory."""
VLLM_RAN_ON: Gpu = "h200"
"""GPU of vLLM's times."""
SWITCHES: dict[str, dict[str, Any]] = {
    "graphs": {"enforce_eager": True},
    "async": {"async_scheduling": False},
    "cascade": {"cascade_attention": False},
    "prefix-caching": {"enable_prefix_caching": False},
    "kernels": {"attention_backend": "tiled"},
}
"""Engine options that switch one feature off."""
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "compressed-tensors", "format": "float-quantized",
            "config_groups": {"0": {"targets": ["Linear"], "weights": {
                "num_bits": 8, "type": "float", "strategy": "channel"}}}},
    "fp8-blocks": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "int4": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True},
    "int4-zeros": {"quant_method": "awq", "bits": 4, "group_size": 128},
}  # fmt: skip
"""Quantizations of the weights, as a config.json describes them."""
MIN_SECONDS = 2.0
"""Minimum total duration of the runs after the first."""
CHAT_REQUESTS, CHAT_RATE = 512, 100.0
"""Number of requests in ``chat``, and their rate per second."""


@dataclass(frozen=True)
class Score:
    """Result of one workload. Times are in seconds."""

    workload: str
    first_seconds: float
    """Duration of the first run."""
    seconds: float
    """Duration of the median of the other runs. Times to first token are from the same run."""
    floor: float | None
    """Floor on this GPU; None if the GPU's rates are unknown."""
    vllm_seconds: float | None
    """vLLM's time; None if it was not measured."""
    vllm_floor: float | None
    """Floor on the GPU that vLLM ran on; None if vLLM was not measured."""
    median_ttft: float
    p99_ttft: float


# ---- workloads ----------------------------------------------------------------------------------


def chat() -> tuple[Workload, list[float]]:
    """Return chat-like requests and their arrival times in seconds."""
    random = Random(5)

    def draw(min_length: int, max_length: int) -> int:
        return round(exp(random.uniform(log(min_length), log(max_length))))

    requests = [
        (random.choices(range(10_000), k=draw(16, 4096)), draw(16, 1024))
        for _ in range(CHAT_REQUESTS)
    ]
    gaps = [random.expovariate(CHAT_RATE) for _ in requests]
    return requests, [sum(gaps[: index + 1]) for index in range(len(gaps))]


def make_workload(name: str) -> tuple[Workload, list[float]]:
    """Return requests and their arrival times in seconds, which are 0 for the fixed workloads."""
    if name == "chat":
        return chat()
    requests = FIXED_WORKLOADS[name]()
    return requests, [0.0] * len(requests)


WORKLOADS = [*FIXED_WORKLOADS, "chat"]


def run_once(
    llm: LLM,
    requests: Workload,
    arrivals: Sequence[float],
    logprobs: int | None = None,
) -> tuple[float, list[float]]:
    """Run a workload with an empty prefix cache.

    Returns:
        Seconds until the last token, and each request's time to first token in seconds.
    """
    llm.engine.reset()
    prompts = [prompt for prompt, _ in requests]
    params = [
        SamplingParams(temperature=0.6, max_tokens=count, ignore_eos=True, logprobs=logprobs)
        for _, count in requests
    ]
    gc.collect()  # garbage of an earlier run must not be collected during this one
    begun = time.perf_counter()
    if not any(arrivals):
        outputs = llm.generate(prompts, params, use_tqdm=False)
    else:
        outputs = _run_as_they_come(llm, prompts, params, arrivals)
    seconds = time.perf_counter() - begun
    for output, (_, count) in zip(outputs, requests, strict=True):
        if len(output.outputs[0].token_ids) != count:
            raise RuntimeError(f"a request ended early: {output.outputs[0].stop_reason}")
    return seconds, [_time_to_first_token(output) for output in outputs]


def _time_to_first_token(output: RequestOutput) -> float:
    metrics = output.metrics
    if metrics is None or metrics.first_token_time is None:
        raise RuntimeError("a request ended without a token")
    return metrics.first_token_time - metrics.arrival_time


def _run_as_they_come(
    llm: LLM, prompts: list[list[int]], params: list[SamplingParams], arrivals: Sequence[float]
) -> list[RequestOutput]:
    begun, added = time.perf_counter(), 0
    outputs: dict[str, RequestOutput] = {}
    while added < len(prompts) or llm.engine.has_unfinished_requests:
        while added < len(prompts) and arrivals[added] <= time.perf_counter() - begun:
            llm.engine.add_request(str(added), prompts[added], params[added])
            added += 1
        for output in llm.engine.step():
            outputs[output.request_id] = output
    return [outputs[str(index)] for index in range(len(prompts))]


# ---- what to compare with -----------------------------------------------------------------------


def this_gpu() -> Gpu | None:
    """Return this machine's GPU if it is one in ``COPY``, else None."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return CARDS.get(name)


def floor_seconds(
    model: str,
    requests: Workload,
    gpu: Gpu | None,
    *,
    enable_prefix_caching: bool = True,
    kv_cache_dtype: KvDtype = "auto",
) -> float | None:
    """Return the simulated time of requests on a GPU at full rates without overheads.

    All requests arrive at once. If the GPU is None, the result is None.
    """
    if gpu is None:
        return None
    config = SimulationConfig(
        EngineConfig(
            model, enable_prefix_caching=enable_prefix_caching, kv_cache_dtype=kv_cache_dtype
        ),
        FleetConfig(gpu=gpu),
        Achieved(
            bandwidth_fraction=COPY[gpu],
            matmul_fraction=PRODUCT,
            attention_fraction=PRODUCT,
            step_overhead_ms=0,
            cascade=True,
        ),
    )
    jobs = [Job(0.0, array("i", prompt), num_tokens) for prompt, num_tokens in requests]
    return float(simulate(make_design(config), config, jobs=jobs).duration)


def vllm_seconds() -> dict[tuple[str, str], float]:
    """Return vLLM's times by model and workload."""
    results = json.loads(VLLM.read_text())["results"]
    return {(each["model"], each["workload"]): each["seconds"] for each in results}


def build(shape: dict[str, Any], options: dict[str, Any], device: str = "cuda") -> LLM:
    """Build an engine with random weights."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape))
        return LLM(folder, load_format="dummy", skip_tokenizer_init=True, device=device, **options)


def record_profile(llm: LLM, path: Path) -> None:
    """Profile a few decode steps of 64 requests, to be viewed at https://ui.perfetto.dev."""
    llm.engine.reset()
    params = SamplingParams(max_tokens=64, ignore_eos=True)
    for index in range(64):
        llm.engine.add_request(str(index), [index + 1] * 256, params)
    for _ in range(16):
        llm.engine.step()
    with profiled(path):
        for _ in range(6):
            llm.engine.step()
    llm.engine.reset()


@contextmanager
def profiled(path: Path) -> Iterator[None]:
    """Profile what is launched and finishes inside, and write a trace for Chrome.

    Args:
        path: file to write; compressed if its name ends with ``.gz``.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    _wait_for_gpu()
    with profile(activities=activities, acc_events=True) as recorded:
        yield
        _wait_for_gpu()
    recorded.export_chrome_trace(str(path))


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ---- the command --------------------------------------------------------------------------------


def measure(
    llm: LLM,
    model: str,
    shape: Path,
    name: str,
    kv_cache_dtype: KvDtype,
    logprobs: int | None = None,
) -> Score:
    """Run a workload once, then repeatedly until the runs fill ``MIN_SECONDS``.

    Args:
        llm: the engine.
        model: key of ``PRESETS``.
        shape: file with the model's config.json.
        name: one of ``WORKLOADS``.
        kv_cache_dtype: ``auto`` or ``fp8``.
        logprobs: number of top tokens whose log-probabilities each request asks for; None: it asks
            for none.
    """
    requests, arrivals = make_workload(name)
    run = partial(run_once, llm, requests, arrivals, logprobs=logprobs)
    first_seconds, _ = run()
    runs = [run()]
    while sum(seconds for seconds, _ in runs) < MIN_SECONDS:
        runs.append(run())
    seconds, ttfts = sorted(runs)[len(runs) // 2]
    print(f"{name}: {seconds:.3f} s", flush=True)
    at_once = not any(arrivals)
    has_floor = at_once and llm.config.tensor_parallel_size == 1
    theirs = vllm_seconds().get((model, name)) if logprobs is None else None
    return Score(
        name,
        first_seconds,
        seconds,
        floor_seconds(str(shape), requests, this_gpu(), kv_cache_dtype=kv_cache_dtype)
        if has_floor
        else None,
        theirs,
        floor_seconds(model, requests, VLLM_RAN_ON) if at_once and theirs else None,
        *np.percentile(ttfts, [50, 99]).tolist(),
    )


def print_scores(title: str, scores: Sequence[Score]) -> None:
    """Print a table with a row for each workload."""

    def ratio(numerator: float | None, denominator: float | None) -> str:
        return f"{numerator / denominator:.2f}" if numerator and denominator else ""

    same_gpu = this_gpu() == VLLM_RAN_ON
    print_table(
        title,
        [
            *("workload", "first run", "seconds", "floor / ours", "vLLM on an H200"),
            *("H200's floor / vLLM", "vLLM / ours", "median TTFT", "p99 TTFT"),
        ],
        [
            [
                score.workload,
                f"{score.first_seconds:.3f}",
                f"{score.seconds:.3f}",
                ratio(score.floor, score.seconds),
                f"{score.vllm_seconds or ''}",
                ratio(score.vllm_floor, score.vllm_seconds),
                ratio(score.vllm_seconds, score.seconds) if same_gpu else "",
                f"{score.median_ttft:.3f}",
                f"{score.p99_ttft:.3f}",
            ]
            for score in scores
        ],
    )


@click.command()
@click.option("--model", type=click.Choice(list(PRESETS)), default="qwen3-0.6b", show_default=True)
@click.option("--workload", "names", type=click.Choice(WORKLOADS), multiple=True)
@click.option("--without", type=click.Choice(list(SWITCHES)), help="Feature to switch off.")
@click.option("--quantization", type=click.Choice(list(QUANTIZATIONS)), help="Form of the weights.")
@click.option("--kv-cache-dtype", type=click.Choice(["auto", "fp8"]), default="auto")
@click.option("--logprobs", type=int, help="Log-probabilities that each request asks for.")
@click.option("--tensor-parallel-size", default=1, show_default=True)
@click.option("--block-size", default=16, show_default=True)
@click.option("--profile", "profile_path", type=click.Path(path_type=Path), metavar="FILE",
              help="Record a few steps for Perfetto instead of measuring.")  # fmt: skip
@click.option(
    "--folder", type=click.Path(path_type=Path), default=RESULTS, help="Folder for the results."
)
def main(
    model: str,
    names: tuple[str, ...],
    without: str | None,
    quantization: str | None,
    kv_cache_dtype: KvDtype,
    logprobs: int | None,
    tensor_parallel_size: int,
    block_size: int,
    profile_path: Path | None,
    folder: Path,
) -> None:
    """Measure workloads with one model (default: all workloads)."""
    begun = time.perf_counter()
    options = SWITCHES[without] if without else {}
    shape = PRESETS[model]
    if quantization:
        shape = {**shape, "quantization_config": QUANTIZATIONS[quantization]}
    options = {"block_size": block_size, "kv_cache_dtype": kv_cache_dtype, **options}
    options["tensor_parallel_size"] = tensor_parallel_size
    llm = build(shape, options)
    built = time.perf_counter() - begun
    if profile_path:
        record_profile(llm, profile_path)
        return
    with TemporaryDirectory() as shapes:
        shape_path = Path(shapes) / "shape.json"
        shape_path.write_text(json.dumps(shape))
        scores = [
            measure(llm, model, shape_path, name, kv_cache_dtype, logprobs)
            for name in names or WORKLOADS
        ]
    gpu = torch.cuda.get_device_name()
    if kv_cache_dtype != "auto":
        quantization = f"{quantization or ''}+{kv_cache_dtype}-cache"
    changes = [f" in {quantization}" * bool(quantization), f" without {without}" * bool(without)]
    asked = f"{logprobs}-logprobs" if logprobs is not None else None
    changes += [f" with {asked}"] if asked else []
    number = f"{tensor_parallel_size} x " * (tensor_parallel_size > 1)
    print_scores(f"{model}{''.join(changes)}, {number}{gpu}, ready in {built:.1f} s", scores)
    several = f"tp{tensor_parallel_size}" if tensor_parallel_size > 1 else None
    stem = "-".join(filter(None, ["gpu_workloads", model, quantization, without, asked, several]))
    settings = {
        "quantization": quantization,
        "model": model,
        "gpu": gpu,
        "without": without,
        "logprobs": logprobs,
        "block_size": block_size,
        "tensor_parallel_size": tensor_parallel_size,
        "ready": built,
    }
    report(stem, {**settings, "scores": [asdict(score) for score in scores]}, folder)


if __name__ == "__main__":
    main()
