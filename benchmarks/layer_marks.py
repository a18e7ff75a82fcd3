"""Marks in a profile of steps: which part of which layer launches what.

A part is marked by a range of ``torch.profiler`` around the method that computes it. Replaying a
graph calls no methods. So steps are also profiled with ``launched_one_by_one``: they launch what
their graphs hold, in the same order and with the same sizes. See ``layer_trace`` for the reader.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch.profiler import record_function

from benchmarks.layer_trace import LAYER, PART, STEP
from minimal_vllm.llm import LLM
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.layers import DecoderLayer, MoE
from minimal_vllm.runner.cuda import CudaRunner
from minimal_vllm.runner.in_ranks import RankRunner
from minimal_vllm.runner.step import GpuStep
from minimal_vllm.step.plan import Plan


def gpu_runner(llm: LLM) -> CudaRunner:
    """Return the runner of an engine on a GPU; with several ranks, that of rank 0.

    Raises:
        TypeError: another kind of runner computes the steps.
    """
    runner: Any = llm.engine._runner
    if isinstance(runner, RankRunner):
        runner = runner._runner
    if type(runner) is not CudaRunner:
        raise TypeError(f"the steps of a {type(runner).__name__} can't be profiled by layer")
    return runner


def mark_runner(runner: CudaRunner, note: Callable[[Plan], None]) -> None:
    """Mark all steps of a runner, and the parts of its network, and note each plan."""
    launch, numbers = runner.launch, count()

    def marked(plan: Plan) -> Any:
        note(plan)
        with record_function(f"{STEP}: {next(numbers)}"):
            return launch(plan)

    _replace(runner, "launch", marked)
    mark_step(runner._step)


def mark_step(step: GpuStep) -> None:
    """Mark the parts of a step, and those of its network."""
    for front in ("decode_front", "mixed_front", "batch_front"):
        _mark(step, front, f"{PART}: front")
    _mark(step, "head", f"{PART}: sampling")
    decoder = step.model.decoder
    if not isinstance(decoder, Decoder):
        raise TypeError(f"the layers of a {type(decoder).__name__} can't be marked")
    mark_decoder(decoder)


def mark_decoder(decoder: Decoder) -> None:
    """Mark the parts of a network."""
    _mark(decoder.embed_tokens, "forward", f"{PART}: embedding")
    for number, layer in enumerate(decoder.layers):
        if not isinstance(layer, DecoderLayer):
            raise TypeError(f"the parts of a {type(layer).__name__} can't be marked")
        _mark_layer(layer, number)
    _mark(decoder.norm, "forward", f"{PART}: last norm")
    _mark(decoder, "logits", f"{PART}: head")


def _mark_layer(layer: DecoderLayer, number: int) -> None:
    """Mark the parts of a layer. What a sub-layer computes outside of its parts is its own."""
    attention, mlp = layer.self_attn, layer.mlp
    _mark(layer.before_attention, "forward", f"{PART}: norm before attention")
    _mark(attention.qkv_proj, "forward", f"{PART}: qkv product")
    _mark(attention, "rotate_and_store", f"{PART}: rotate and store")
    _mark(attention.o_proj, "forward", f"{PART}: o product")
    _mark(attention, "forward", f"{PART}: attention")
    _mark(layer, "complete", f"{PART}: sum over GPUs")
    _mark(layer.after_attention, "normalize", f"{PART}: norm after attention")
    _mark(layer.before_mlp, "forward", f"{PART}: norm before MLP")
    if isinstance(mlp, MoE):
        _mark(mlp.router, "forward", f"{PART}: router")
        _mark(mlp.experts, "forward", f"{PART}: experts")
    else:
        _mark(mlp.gate_up_proj, "forward", f"{PART}: gate and up")
        _mark(mlp.down_proj, "forward", f"{PART}: down")
    _mark(layer.after_mlp, "normalize", f"{PART}: norm after MLP")
    _mark(layer, "forward", f"{LAYER}: {number}")


def _mark(owner: object, method: str, name: str) -> None:
    """Put a range around all calls of an object's method. Modules call each other's methods."""
    call = getattr(owner, method)

    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return call(*args, **kwargs)

    _replace(owner, method, marked)


def _replace(owner: object, method: str, replacement: Callable[..., Any]) -> None:
    setattr(owner, method, replacement)


@dataclass(frozen=True)
class Relaunch:
    """Work that is launched again where a graph would be replayed."""

    compute: Callable[[], None]

    def replay(self) -> None:
        """Launch the work."""
        self.compute()


class Relauncher:
    """Recorder that records nothing; see ``graphs.Capture``."""

    def record(self, compute: Callable[[], None], /) -> Relaunch:
        """Return the work as what is launched again."""
        return Relaunch(compute)


@contextmanager
def launched_one_by_one(runner: CudaRunner) -> Iterator[None]:
    """Let a runner launch what its graphs hold, kernel by kernel, instead of replaying it.

    Other ranks may replay their graphs meanwhile, since the sums over ranks are the same.
    """
    graphs: Any = runner._graphs
    if graphs is None:
        yield
        return
    kept = graphs._capture, graphs._bodies, graphs._heads
    graphs._capture, graphs._bodies, graphs._heads = Relauncher(), {}, {}
    try:
        yield
    finally:
        graphs._capture, graphs._bodies, graphs._heads = kept
