"""Frame rate of the view of a large engine: 100,000 blocks and 1,000 requests.

python -m benchmarks.view_frames

The real scheduler and pool run with a stub runner and write a trace. The page then plays the trace
in Chromium (headless, without a GPU) as fast as it can, one step per frame. Three things are
measured: the time between frames, the part of it that drawing takes, and the CPU time of all
Chromium processes, which hardly depends on other work on the machine.
"""

import argparse
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import median
from threading import Thread
from typing import Any, cast

import psutil
from playwright.sync_api import Page, sync_playwright

from benchmarks.common import RESULTS, print_table, report
from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import EVICTION_STRATEGIES
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.admission import Admission, ModelLimits
from minimal_vllm.engine.engine import Engine
from minimal_vllm.engine.output_processor import OutputProcessor
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.runner.interface import StepResult
from minimal_vllm.runner.plain import Landed
from minimal_vllm.sampling.sampler import Sampled
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.plan import Plan
from minimal_vllm.trace.facts import EngineFacts
from minimal_vllm.trace.writer import TraceWriter
from minimal_vllm_lab.view.replay import replay_server

BLOCK_SIZE = 16
CONTEXT = 1000
"""Maximum length of a prompt in tokens."""
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu"]
"""Command line options of Chromium."""

MEASURE = """async () => {
  const drawing = [];
  for (const name of ["draw", "drawWords"]) {  // the latter is not in every frame
    const draw = view[name].bind(view);
    view[name] = () => {
      const begun = performance.now();
      draw();
      if (name === "draw") drawing.push(0);
      drawing[drawing.length - 1] += performance.now() - begun;
    };
  }
  const frames = [];
  let last = null;
  const tick = (now) => {
    if (last !== null) frames.push(now - last);
    last = now;
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
  view.player.moveTo(view.player.history.start);
  view.player.stepsPerSecond = 0;
  await view.player.play();
  while (!view.player.isAtEnd) await new Promise((resolve) => setTimeout(resolve, 50));
  return { frames, drawing, steps: view.digest.columns.length };
}"""
"""JavaScript function that plays the trace and measures the frames."""


IS_LOADED = """(() => {
  const player = window.view?.player;
  return player?.history != null && player.history.head.step >= 0
    && (!player.paused || player.isAtEnd);
})()"""
"""JavaScript condition: the page has read the whole trace, and is playing it or has reached its
end."""


class StubRunner:
    """Runner that gives every request the same token."""

    def launch(self, plan: Plan) -> Landed:
        """Return a finished step with a token for each request that samples."""
        count = len(plan.sampling)
        return Landed(StepResult(Sampled.one_each([1] * count), []))


def write_trace(path: Path, num_blocks: int, num_requests: int, num_steps: int) -> None:
    """Run an engine that is always full of requests, and write its trace."""
    limits = SchedulerConfig(
        max_model_len=min(2 * CONTEXT, num_blocks * BLOCK_SIZE),
        max_num_batched_tokens=16 * num_requests,
        max_num_seqs=num_requests,
        block_size=BLOCK_SIZE,
    )
    pool = BlockPool(num_blocks, EVICTION_STRATEGIES["lru"]())
    writer = TraceWriter(path, 10**10)
    engine = Engine(
        Scheduler(limits, pool),
        StubRunner(),
        Admission(ModelLimits(1000, frozenset(), 0), None, 0),
        OutputProcessor(None),
        [writer],
    )
    writer.begin(_facts(limits, num_blocks), None)
    random = Random(0)
    num_added = 0
    for _ in range(num_steps):
        while len(engine.scheduler.running) + len(engine.scheduler.waiting) < num_requests:
            length = random.randint(CONTEXT // 2, CONTEXT)
            prompt = random.choices(range(1000), k=min(length, limits.max_model_len // 2))
            params = SamplingParams(max_tokens=random.randint(1, num_steps), detokenize=False)
            engine.add_request(str(num_added), prompt, params)
            num_added += 1
        engine.step()
    writer.close()


def _facts(limits: SchedulerConfig, num_blocks: int) -> EngineFacts:
    return EngineFacts(
        program="benchmarks.view_frames",
        model="none",
        device="none",
        dtype="none",
        num_blocks=num_blocks,
        block_size=limits.block_size,
        max_model_len=limits.max_model_len,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
        scheduling_policy=limits.policy,
        eviction_policy="lru",
        enable_prefix_caching=limits.enable_prefix_caching,
        enable_chunked_prefill=limits.enable_chunked_prefill,
    )


@contextmanager
def open_page(path: Path) -> Iterator[Page]:
    """Open the page of a trace in Chromium, once it has read all of it."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = replay_server(path)
    thread = Thread(target=server.run, args=([listener],))
    thread.start()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS, timeout=0
        )
        page = chromium.new_page(viewport={"width": 1920, "height": 1080})
        page.goto("http://{}:{}/view".format(*listener.getsockname()), timeout=0)
        while not page.evaluate(IS_LOADED):
            page.wait_for_timeout(100)
        yield page
        chromium.close()
    server.should_exit = True
    thread.join()


def _browser_seconds() -> float:
    """Return the CPU time of the browser, a descendant of this process, in seconds."""
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(each.user + each.system for each in times)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return the results that are written to the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        write_trace(path, options.blocks, options.requests, options.steps)
        with open_page(path) as page:
            before = _browser_seconds()
            measured = page.evaluate(MEASURE)
            measured["cpu_seconds"] = _browser_seconds() - before
    rows = []
    for name, label in (("frames", "between frames"), ("drawing", "drawing a frame")):
        times = sorted(measured[name])
        rows.append(
            [label, *(f"{t:.1f}" for t in (median(times), times[-1 - len(times) // 20], times[-1]))]
        )
    title = f"Milliseconds: {options.blocks:,} blocks, {options.requests:,} requests"
    print_table(title, ["", "median", "95th percentile", "max"], rows)
    per_frame = 1000 * measured["cpu_seconds"] / len(measured["frames"])
    print(f"\nCPU time of Chromium: {per_frame:.0f} ms per frame")
    report("view_frames", measured, options.results)
    return cast("dict[str, Any]", measured)


if __name__ == "__main__":
    main()
