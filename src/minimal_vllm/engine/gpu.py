"""Making the runner of a GPU, which computes whole steps with our own kernels."""

from functools import partial

from minimal_vllm.attention.triton_backend import TritonAttention
from minimal_vllm.config import EngineConfig, SchedulerConfig
from minimal_vllm.device.properties import num_sms
from minimal_vllm.runner.capture import GraphCapture
from minimal_vllm.runner.compile import compile_in_parallel
from minimal_vllm.runner.cuda import CudaRunner
from minimal_vllm.runner.graphs import Graphs
from minimal_vllm.runner.guesses import DraftSteps, EagleSteps, GuessSteps, PlaceSteps
from minimal_vllm.runner.interface import CachedModel
from minimal_vllm.runner.shapes import max_places, max_recorded_tokens
from minimal_vllm.runner.step import GpuStep
from minimal_vllm.runner.table import RowTable
from minimal_vllm.sampling.kernels.logprobs import find_logprobs
from minimal_vllm.sampling.logprobs import AskedLogprobs
from minimal_vllm.speculation.cuda import SpeculatingCudaRunner
from minimal_vllm.speculation.cuda_draft import CudaDraftModel
from minimal_vllm.speculation.draft_model import DraftModel
from minimal_vllm.speculation.eagle_model import EagleModel


def make_cuda_runner(
    config: EngineConfig,
    limits: SchedulerConfig,
    model: CachedModel,
    draft: DraftModel | None,
    *,
    progress: bool,
    lazy: bool = False,
) -> CudaRunner:
    """Make a runner, and record its CUDA graphs; see ``make_runner``.

    Args:
        config: the user's configuration.
        limits: limits of the scheduler.
        model: decoder, attention and KV cache, of our own kernels.
        draft: the draft model of speculative decoding, if there is one.
        progress: whether to show progress bars.
        lazy: see ``make_runner``.
    """
    speculative = config.speculative_config
    max_guesses = 0 if speculative is None else speculative.max_guesses
    table = RowTable(
        limits.max_num_seqs,
        limits.blocks_for(limits.max_model_len),
        model.device,
        model.groups.number,
        max_guesses,
    )
    step = _make_step(model, table)
    capture = None if config.enforce_eager else GraphCapture()
    graphs = None
    if capture is None:
        step.attention.start_library()
    else:
        graphs = _make_graphs(config, limits, step, capture)
        if lazy:
            graphs.record_largest()
        else:
            graphs.record(progress=progress)
    if speculative is None:
        return CudaRunner(step, graphs)

    most = max_places(limits.max_num_seqs, max_guesses)
    guess_steps = GuessSteps(step, capture, most)
    _record_places(guess_steps, progress=progress)
    cuda_draft = None
    if draft is not None:
        draft_steps = _make_draft_steps(draft, table, capture, most)
        _record_places(draft_steps, progress=progress)
        cuda_draft = CudaDraftModel(draft, draft_steps)
        cuda_draft.warm_up()
    return SpeculatingCudaRunner(step, graphs, guess_steps, cuda_draft)


def _make_draft_steps(
    draft: DraftModel, table: RowTable, capture: GraphCapture | None, most: int
) -> DraftSteps:
    step = _make_step(draft.model, table)
    if isinstance(draft, EagleModel):
        return EagleSteps(draft.head, step, capture, most)
    return DraftSteps(step, capture, most)


def _make_step(model: CachedModel, table: RowTable) -> GpuStep:
    if not isinstance(model.attention, TritonAttention):
        raise TypeError("a CUDA runner needs a model with Triton attention")
    return GpuStep(model, model.attention, table)


def _make_graphs(
    config: EngineConfig, limits: SchedulerConfig, step: GpuStep, capture: GraphCapture
) -> Graphs:
    """Make the CUDA graphs of steps without guesses, and compile all kernels of such steps."""
    num_parameters = round(step.model.decoder.config.expected_parameters(1))
    graphs = Graphs(
        step,
        capture,
        max_num_seqs=limits.max_num_seqs,
        max_tokens=max_recorded_tokens(
            num_parameters, limits.max_num_batched_tokens, num_sms(step.model.device)
        ),
        cascade=config.cascade_attention,
    )
    # The library starts while the compiler's threads are at work.
    others = (partial(_find_a_logprob, step), step.attention.start_library)
    compile_in_parallel([*graphs.steps_to_record(), *others])
    return graphs


def _find_a_logprob(step: GpuStep) -> None:
    """Launch the kernels that no graph has, since only some requests need them."""
    outputs = step.new_outputs(1)
    asked = AskedLogprobs.of([1], outputs.logits.shape[1], step.model.device)
    if asked is not None:
        find_logprobs(outputs.logits, outputs.tokens, asked)


def _record_places(steps: PlaceSteps, *, progress: bool) -> None:
    """Record the CUDA graphs of steps with several places per request, if any are."""
    compile_in_parallel(steps.steps_to_record())
    steps.record(progress=progress)
