"""Time per token that the server adds, compared with the offline engine.

python -m benchmarks.http_overhead

A batch of equal requests is streamed from a server and completed by ``LLM.generate`` in this
process, in turn, so that each ratio compares runs close in time. Both use the same options and one
thread for the model; a second core serves the client. Time per token is measured between a
request's first and last token.

``--weightless`` takes a model that costs next to nothing, so that its noise hides no difference.

CPU time is that of the server's process, and of this process during ``LLM.generate``. Unlike wall
time, it hardly depends on other work on the machine. The event loop's thread, which speaks HTTP, is
also measured separately.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.common import RESULTS, print_table, report
from benchmarks.server import Server, serving
from benchmarks.serving_overhead import WEIGHTLESS
from minimal_vllm.llm import LLM
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm_lab.bench.client import Client, connect, send_all
from minimal_vllm_lab.bench.config import Load, Workload
from minimal_vllm_lab.bench.workload import SampleRequest, make_requests

PROMPT = 32
"""Number of tokens in a prompt."""
BLOCKS = 4096
"""Number of KV blocks."""
FLAGS = (f"--num-gpu-blocks-override={BLOCKS}", "--no-enable-prefix-caching")
"""Options of the server. The offline engine has the same options."""


@dataclass(frozen=True)
class Timing:
    """Timing of one batch, in seconds."""

    whole: float
    """Time from the start of the first request to the end of the last."""
    per_token: float
    """Mean time per token after a request's first."""
    cpu: float
    """CPU time of the process that computes."""
    loop_cpu: float
    """CPU time of the server's event loop alone."""


@dataclass(frozen=True)
class Overhead:
    """Timings of one batch size, offline and over HTTP in turn."""

    batch: int
    output_len: int
    offline: list[Timing]
    http: list[Timing]

    @property
    def ratios(self) -> list[float]:
        """Time per token over HTTP divided by the offline time, for each repeat."""
        pairs = zip(self.http, self.offline, strict=True)
        return [http.per_token / offline.per_token for http, offline in pairs]

    def cpu_per_token(self, timings: Sequence[Timing]) -> float:
        """Return the CPU seconds per token over all repeats, because process clocks are coarse."""
        return sum(each.cpu for each in timings) / self._num_tokens

    @property
    def loop_cpu_per_token(self) -> float:
        """CPU seconds per token of the server's event loop."""
        return sum(each.loop_cpu for each in self.http) / self._num_tokens

    @property
    def _num_tokens(self) -> int:
        return len(self.http) * self.batch * self.output_len


def run_offline(llm: LLM, requests: Sequence[SampleRequest], token_ids: Sequence[int]) -> Timing:
    """Complete the batch with ``LLM.generate``."""
    prompts = [{"prompt_token_ids": [token_ids[each] for each in r.prompt]} for r in requests]
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=requests[0].output_len)
    begun, begun_cpu = time.perf_counter(), time.process_time()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    whole, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
    per_token = []
    for output in outputs:
        times = output.metrics
        if times is None or times.first_token_time is None or times.finished_time is None:
            raise RuntimeError("a request has no times")
        decode = times.finished_time - times.first_token_time
        per_token.append(decode / (requests[0].output_len - 1))
    return Timing(whole, fmean(per_token), cpu, loop_cpu=0.0)


async def run_http(server: Server, client: Client, requests: list[SampleRequest]) -> Timing:
    """Stream the batch from the server."""
    begun, begun_cpu, begun_loop = time.perf_counter(), server.cpu_time, server.loop_cpu_time
    outcomes = await send_all(client, requests, [0.0] * len(requests))
    whole = time.perf_counter() - begun
    if errors := [each.error for each in outcomes if each.error]:
        raise RuntimeError(errors[0])
    return Timing(
        whole,
        fmean(each.tpot or 0.0 for each in outcomes),
        server.cpu_time - begun_cpu,
        server.loop_cpu_time - begun_loop,
    )


async def measure(
    server: Server, llm: LLM, batches: Sequence[int], num_tokens: int, repeats: int
) -> list[Overhead]:
    """Measure each batch size ``repeats`` times, after a warm-up."""
    overheads = []
    async with connect(Load(base_url=server.url, extra_body={"temperature": 0})) as client:
        if client.token_ids is None:
            raise RuntimeError("the server does not tokenize, so prompts can't be token ids")
        for batch in batches:
            workload = Workload(
                num_prompts=batch, random_input_len=PROMPT, random_output_len=num_tokens
            )
            requests = make_requests(workload, client.num_symbols)
            overhead = Overhead(batch, num_tokens, [], [])
            for _ in range(1 + repeats):
                overhead.offline.append(run_offline(llm, requests, client.token_ids))
                overhead.http.append(await run_http(server, client, requests))
            del overhead.offline[0], overhead.http[0]
            overheads.append(overhead)
    return overheads


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return the results that are written to the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=64, help="number of tokens per output")
    parser.add_argument("--repeats", type=int, default=7, help="number of repeats per batch")
    parser.add_argument("--weightless", action="store_true", help="a model of one small layer")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    flags: tuple[str, ...] = FLAGS
    model: dict[str, Any] = {}
    if options.weightless:
        model = {"load_format": "dummy", "hf_overrides": WEIGHTLESS}
        flags = (*FLAGS, "--load-format=dummy", f"--hf-overrides={json.dumps(WEIGHTLESS)}")

    import torch

    torch.set_num_threads(1)
    with serving(*flags, threads=1) as server:
        llm = LLM(num_gpu_blocks_override=BLOCKS, enable_prefix_caching=False, **model)
        overheads = asyncio.run(
            measure(server, llm, options.batches, options.tokens, options.repeats)
        )
    print_overheads(overheads)
    results = {
        "overheads": [{**asdict(each), "ratios": each.ratios} for each in overheads],
        "tokens": options.tokens,
    }
    report("http_overhead", results, options.results)
    return results


def print_overheads(overheads: Sequence[Overhead]) -> None:
    """Print a table of times and a table of CPU times, with a row for each batch size."""
    print_table(
        "Time per token of a request (medians)",
        ["batch", "offline, ms", "HTTP, ms", "ratio", "in each repeat"],
        [
            [
                str(each.batch),
                f"{1e3 * median(timing.per_token for timing in each.offline):.2f}",
                f"{1e3 * median(timing.per_token for timing in each.http):.2f}",
                f"{median(each.ratios):.2f}",
                " ".join(f"{ratio:.2f}" for ratio in sorted(each.ratios)),
            ]
            for each in overheads
        ],
    )
    print_table(
        "CPU time per token, µs (prompts included)",
        ["batch", "offline", "server", "ratio", "event loop alone"],
        [
            [
                str(each.batch),
                f"{1e6 * each.cpu_per_token(each.offline):.0f}",
                f"{1e6 * each.cpu_per_token(each.http):.0f}",
                f"{each.cpu_per_token(each.http) / each.cpu_per_token(each.offline):.2f}",
                f"{1e6 * each.loop_cpu_per_token:.0f}",
            ]
            for each in overheads
        ],
    )


if __name__ == "__main__":
    main()
