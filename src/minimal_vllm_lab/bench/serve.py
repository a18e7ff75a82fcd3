"""Benchmark of a server: ``bench serve``, at one request rate or at several."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from math import isinf
from pathlib import Path

from tqdm import tqdm

from minimal_vllm_lab.bench.client import Client, connect, send_all
from minimal_vllm_lab.bench.config import Load, Workload
from minimal_vllm_lab.bench.statistics import Fields, serve_details, serve_result
from minimal_vllm_lab.bench.workload import make_requests
from minimal_vllm_lab.stats.arrivals import arrival_times

WARMUP = 0
"""Number of the warm-up run; measured runs count from 1. A run's number seeds its prompts."""


async def run_serve(workload: Workload, load: Load) -> list[Fields]:
    """Run the workload once per request rate.

    Returns:
        Result of each run, with vLLM's fields and those of ``serve_details``.

    Raises:
        ValueError: no server answers, or a run completed no request.
    """
    async with connect(load) as client:
        if load.num_warmups:
            warmup = replace(workload, num_prompts=load.num_warmups)
            requests = make_requests(warmup, client.num_symbols, WARMUP)
            await send_all(client, requests, [0.0] * len(requests), load.max_concurrency)
        return [
            await _run_at(client, workload, load, rate, run)
            for run, rate in enumerate(load.rates, WARMUP + 1)
        ]


async def _run_at(client: Client, workload: Workload, load: Load, rate: float, run: int) -> Fields:
    requests = make_requests(workload, client.num_symbols, run)
    times = arrival_times(
        rate, load.burstiness, [workload.seed, run], stretched_to=workload.num_prompts
    )
    guessed_before = await client.count_guesses()
    begun = time.perf_counter()
    with tqdm(total=len(requests), desc=f"{rate:g} requests/s", disable=None) as bar:
        outcomes = await send_all(
            client, requests, times, load.max_concurrency, on_end=lambda _: bar.update()
        )
    duration = time.perf_counter() - begun
    if all(each.error for each in outcomes):
        raise ValueError(
            f"all {len(outcomes)} requests to {load.url}{load.endpoint} failed, the first with: "
            f"{outcomes[0].error}"
        )
    guessed = await client.count_guesses()
    metrics = load.percentile_metrics.split(",")
    return {
        **_setup(client, workload, load, rate),
        **serve_result(outcomes, duration, load.slo, metrics, load.percentiles),
        **((guessed - guessed_before).result() if guessed and guessed_before else {}),
        **serve_details(outcomes),
    }


def _setup(client: Client, workload: Workload, load: Load, rate: float) -> Fields:
    """Return the result fields that describe the run."""
    backend = "openai-chat" if load.is_chat else "openai"
    return {
        "date": datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": backend,
        "backend": backend,
        "label": load.label or backend,
        "model_id": client.model,
        "num_prompts": workload.num_prompts,
        "request_rate": "inf" if isinf(rate) else rate,
        "burstiness": load.burstiness,
        "max_concurrency": load.max_concurrency,
    }


def save(results: list[Fields], load: Load) -> Iterator[Path]:
    """Write each result to its own file; yield the paths."""
    folder = Path(load.result_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        path = folder / (load.result_filename or _file_name(result))
        written = result if load.save_detailed else without_details(result)
        path.write_text(json.dumps(written) + "\n", encoding="utf-8")
        yield path


def without_details(result: Fields) -> Fields:
    """Return a result without the lists of each request's values."""
    details = serve_details([])
    return {name: value for name, value in result.items() if name not in details}


def _file_name(result: Fields) -> str:
    """Return the file name that vLLM would choose."""
    concurrency = result["max_concurrency"]
    return "-".join(
        [
            result["label"],
            f"{result['request_rate']}qps",
            *([f"concurrency{concurrency}"] if concurrency else []),
            result["model_id"].rpartition("/")[2],
            f"{result['date']}.json",
        ]
    )
