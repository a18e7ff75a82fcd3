"""The GPU's runner, in Triton's interpreter where there is no GPU, against the CPU's.

What would be recorded is computed again instead of replayed: everything but CUDA's own part.
"""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.attention.triton_backend import TritonAttention
from minimal_vllm.engine.engine import Engine
from minimal_vllm.engine.output_processor import OutputProcessor
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.model import triton_modules
from minimal_vllm.model.layers import PLAIN_MODULES
from minimal_vllm.model.loader import load_model
from minimal_vllm.model.triton_modules import TRITON_MODULES
from minimal_vllm.runner import graphs as graphs_module
from minimal_vllm.runner.cuda import CudaRunner
from minimal_vllm.runner.graphs import Graphs
from minimal_vllm.runner.inputs import InputMemory
from minimal_vllm.runner.interface import CachedModel
from minimal_vllm.runner.shapes import (
    MAX_ADMITTED,
    max_admitted,
    max_recorded_tokens,
    token_counts,
)
from minimal_vllm.runner.step import GpuStep
from minimal_vllm.runner.table import RowTable

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_on_gpu does the same")
CPU = torch.device("cpu")
MAX_NUM_SEQS, BUDGET = 6, 48
LIMITS = {"max_num_seqs": MAX_NUM_SEQS, "max_num_batched_tokens": BUDGET, "max_model_len": 128}


@pytest.fixture
def products_by_the_library(monkeypatch):
    """Our kernels for products have tests of their own, and take the interpreter long."""
    monkeypatch.setattr(triton_modules, "can_use_matvec", lambda _: False)
    monkeypatch.setattr(triton_modules, "can_use_split", lambda *_: False)


class Again:
    """A recording that computes what was recorded."""

    def __init__(self, compute):
        self.replay = torch.inference_mode()(compute)


class Repeater:
    """Records nothing."""

    def __init__(self):
        self.replays = Counter()

    def record(self, compute):
        def counted():
            self.replays[compute.func.__qualname__] += 1
            compute()

        return Again(counted)


def make_engines(
    folder,
    *,
    num_blocks=40,
    cascade=True,
    max_step_tokens=BUDGET,
    graphs=True,
    modules=PLAIN_MODULES,
    num_guesses=0,
    max_guessed=0,
):
    """The CPU's own, and one that runs on the GPU's runner, with its recorder.

    With plain modules, only attention, sampling and the table of rows are our kernels: what the
    runner itself does. The interpreter takes long for the others.
    """
    llm = LLM(str(folder), device="cpu", num_gpu_blocks_override=num_blocks, **LIMITS)
    old = llm.engine._runner._model
    files = llm.built.files
    decoder = load_model(
        files.checkpoint,
        files.config,
        torch.float32,
        CPU,
        max_positions=128,
        modules=modules,
    )
    attention = TritonAttention(
        windows=frozenset(layer.window for layer in files.config.layers),
        num_heads=files.config.num_heads,
        num_kv_heads=files.config.num_kv_heads,
        head_dim=files.config.head_dim,
        max_num_seqs=MAX_NUM_SEQS,
        num_sms=4,
        device=CPU,
        dtype=torch.float32,
        plain=files.config.has_plain_attention,
        max_guessed=max_guessed,
    )
    caches = [type(cache)(*(torch.zeros_like(part) for part in cache)) for cache in old.caches]
    model = CachedModel(decoder, attention, caches, old.groups, old.block_size, CPU)
    config = llm.engine.scheduler.config
    max_blocks = config.blocks_for(config.max_model_len)
    table = RowTable(MAX_NUM_SEQS, max_blocks, CPU, old.groups.number, num_guesses)
    step, recorder = GpuStep(model, attention, table), Repeater()
    recorded = Graphs(
        step, recorder, max_num_seqs=MAX_NUM_SEQS, max_tokens=max_step_tokens, cascade=cascade
    )
    recorded.record(progress=False)
    runner = CudaRunner(step, recorded if graphs else None)
    scheduler = Scheduler(config, llm.engine.scheduler.pool.emptied())
    engine = Engine(
        scheduler,
        runner,
        llm.engine._admission,
        OutputProcessor(llm.engine._outputs._tokenizer),
        async_scheduling=True,
    )
    return llm.engine, engine, recorder


def complete(engine, prompts, params, *, arrive_every=2):
    """Tokens by request, of requests that come while others run; 0: all come at once."""
    outputs = complete_all(engine, prompts, params, arrive_every=arrive_every)
    return [output.outputs[0].token_ids for output in outputs]


def complete_all(engine, prompts, params, *, arrive_every=2):
    outputs, step = {}, 0
    waiting = list(enumerate(prompts))
    while waiting or engine.has_unfinished_requests:
        while waiting and (not arrive_every or step % arrive_every == 0):
            index, prompt = waiting.pop(0)
            engine.add_request(str(index), prompt, params)
            if arrive_every:
                break
        for output in engine.step():
            outputs[output.request_id] = output
        step += 1
    engine.scheduler.check()
    return [outputs[str(index)] for index in range(len(prompts))]


PROMPTS = [[(7 * i + 3 * n) % 250 for i in range(n)] for n in (5, 70, 1, 33, 16, 2)]
GREEDY = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)


@pytest.mark.usefixtures("products_by_the_library")
@pytest.mark.parametrize("family", ["qwen3", "mistral-window", "qwen3-bias-layer-types"])
def test_steps_of_prompts_and_decodes_give_the_cpus_tokens(checkpoint, family):
    expected, got, recorder = make_engines(checkpoint(family), modules=TRITON_MODULES)
    tokens = complete(expected, PROMPTS, GREEDY)
    assert complete(got, PROMPTS, GREEDY) == tokens
    assert set(recorder.replays) == {
        "Graphs._mixed_body",
        "Graphs._mixed_head",
        "Graphs._steady",
    }


def test_what_was_compiled_beforehand_leaves_nothing_behind(checkpoint):
    expected, got, _ = make_engines(checkpoint("qwen3"))
    for compute in list(got._runner._graphs.steps_to_record()):
        torch.inference_mode()(compute)()
    assert complete(got, PROMPTS[:3], GREEDY) == complete(expected, PROMPTS[:3], GREEDY)


@pytest.mark.parametrize("options", [{"graphs": False}, {"max_step_tokens": 20}])
def test_steps_without_a_recording_give_the_cpus_tokens(checkpoint, options):
    expected, got, recorder = make_engines(checkpoint("llama"), **options)
    assert complete(got, PROMPTS, GREEDY) == complete(expected, PROMPTS, GREEDY)
    assert bool(recorder.replays) is options.get("graphs", True)


def test_more_prompts_than_a_recording_holds_are_computed_without_one(checkpoint, monkeypatch):
    monkeypatch.setattr(graphs_module, "MAX_PROMPTS", 1)
    expected, got, recorder = make_engines(checkpoint("qwen3"))
    prompts = [prompt[:9] for prompt in PROMPTS]
    outputs = [complete(each, prompts, GREEDY, arrive_every=0) for each in (got, expected)]
    assert outputs[0] == outputs[1]
    assert not recorder.replays["Graphs._mixed_body"]


def test_requests_that_are_preempted_go_on_rightly(checkpoint):
    expected, got, _ = make_engines(checkpoint("qwen3"), num_blocks=8)
    preempted = []
    got.scheduler.preempt = lambda each: (
        preempted.append(each) or Scheduler.preempt(got.scheduler, each)
    )
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    prompts = [[(7 * i + n) % 250 for i in range(n)] for n in (29, 30, 31)]
    outputs = complete(got, prompts, params, arrive_every=1)
    assert outputs == complete(expected, prompts, params, arrive_every=1)
    assert preempted


def test_seeded_samples_are_the_cpus(checkpoint):
    expected, got, _ = make_engines(checkpoint("qwen3"))
    params = SamplingParams(temperature=0.9, seed=5, max_tokens=6, ignore_eos=True)
    assert complete(got, PROMPTS[:4], params) == complete(expected, PROMPTS[:4], params)


def test_prompt_logprobs_are_those_of_the_cpu_and_their_steps_are_replayed(checkpoint):
    expected, got, recorder = make_engines(checkpoint("llama"))
    params = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=1, ignore_eos=True)
    ours, theirs = (complete_all(engine, PROMPTS[:2], params) for engine in (got, expected))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.outputs[0].token_ids == other.outputs[0].token_ids
        ranks = [
            [each and {token: value.rank for token, value in each.items()} for each in known]
            for known in (mine.prompt_logprobs, other.prompt_logprobs)
        ]
        assert ranks[0] == ranks[1]
    assert recorder.replays["Graphs._mixed_body"]


ASKED = [
    SamplingParams(temperature=0, max_tokens=6, logprobs=2, prompt_logprobs=0, ignore_eos=True),
    SamplingParams(temperature=0.8, seed=3, max_tokens=6, logprobs=0, ignore_eos=True),
    SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, allowed_token_ids=[5, 9, 11]),
    SamplingParams(temperature=0, max_tokens=6, min_tokens=3, logit_bias={7: 9.0}, logprobs=1),
]


def test_no_step_waits_for_its_logprobs_or_its_rules_before_the_next_is_launched(
    checkpoint, monkeypatch
):
    expected, got, _ = make_engines(checkpoint("qwen3"))
    tokens = [complete_each(expected, PROMPTS[:4], ASKED)]
    monkeypatch.setattr(CudaRunner, "launch", without_waiting(CudaRunner.launch, monkeypatch))
    tokens.append(complete_each(got, PROMPTS[:4], ASKED))
    for mine, other in zip(*tokens, strict=True):
        assert mine.outputs[0].token_ids == other.outputs[0].token_ids
        mine, other = mine.outputs[0].logprobs, other.outputs[0].logprobs
        assert (mine and list(map(set, mine))) == (other and list(map(set, other)))


def complete_each(engine, prompts, params):
    outputs = {}
    for index, (prompt, asked) in enumerate(zip(prompts, params, strict=True)):
        engine.add_request(str(index), prompt, asked)
    while engine.has_unfinished_requests:
        outputs.update((output.request_id, output) for output in engine.step())
    return [outputs[str(index)] for index in range(len(prompts))]


def without_waiting(launch, monkeypatch):
    """Launch with nothing that a GPU would have to finish first."""

    def refuse(*_):
        raise AssertionError("the CPU waits for the GPU")

    def launch_only(runner, plan):
        with monkeypatch.context() as patch:
            for name in ("tolist", "item", "cpu", "__bool__"):
                patch.setattr(torch.Tensor, name, refuse)
            return launch(runner, plan)

    return launch_only


def test_what_the_full_sampler_chooses_is_what_goes_on(checkpoint):
    expected, got, _ = make_engines(checkpoint("qwen3"))
    params = SamplingParams(
        temperature=0, max_tokens=6, repetition_penalty=1.3, logprobs=2, ignore_eos=True
    )
    ours, theirs = (complete_all(engine, PROMPTS[:3], params) for engine in (got, expected))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.outputs[0].token_ids == other.outputs[0].token_ids
        assert list(map(set, mine.outputs[0].logprobs)) == list(map(set, other.outputs[0].logprobs))


def make_pairs(count):
    return [
        [(11 * i + 50 * pair) % 250 for i in range(33)] + [pair, own]
        for pair in range(count)
        for own in (1, 2)
    ]


@pytest.mark.parametrize(
    ("family", "pairs", "cascade"),
    [
        ("qwen3", 1, True),
        ("qwen3", 3, True),
        ("qwen3", 1, False),
        ("qwen3-bias-layer-types", 1, True),
    ],
)
def test_beginnings_shared_in_pairs_are_read_rightly(
    checkpoint, family, pairs, cascade, monkeypatch
):
    """Three pairs need more tiles than a batch of so few has."""
    told = []
    fill = TritonAttention.fill_shared_work
    monkeypatch.setattr(
        TritonAttention,
        "fill_shared_work",
        lambda self, work, prefixes, count: (
            told.append((len(prefixes), count)) or fill(self, work, prefixes, count)
        ),
    )
    expected, got, _ = make_engines(checkpoint(family), num_blocks=120, cascade=cascade)
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    outputs = complete(got, make_pairs(pairs), params, arrive_every=0)
    assert outputs == complete(expected, make_pairs(pairs), params, arrive_every=0)
    assert max((number for number, _ in told), default=0) == (pairs if cascade else 0)


def test_a_step_without_a_recording_reads_shared_beginnings_once_too(checkpoint, monkeypatch):
    told = []
    front = GpuStep.batch_front
    monkeypatch.setattr(
        GpuStep,
        "batch_front",
        lambda self, batches, shared=None: (
            told.append((len(batches[0].decodes), shared and shared.lengths.tolist()))
            or front(self, batches, shared)
        ),
    )
    expected, got, _ = make_engines(checkpoint("qwen3"), num_blocks=120, max_step_tokens=20)
    prompts = [*make_pairs(1), PROMPTS[1]]
    outputs = [complete(each, prompts, GREEDY, arrive_every=1) for each in (got, expected)]
    assert outputs[0] == outputs[1]
    assert (2, [32, 32]) in told
    assert (0, None) in told


OTHERS = [[(13 * i + 5 * k) % 250 for i in range(40)] for k in range(4)]


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_some_shared_is_not_read_by_others(checkpoint, monkeypatch, interrupted):
    """Not even if Ctrl-C comes when it was just noted, and the engine is reset."""
    expected, got, _ = make_engines(checkpoint("qwen3"))
    with monkeypatch.context() as patch:
        if interrupted:
            fill = TritonAttention.fill_shared_work

            def interrupt(self, work, prefixes, count):
                fill(self, work, prefixes, count)
                if prefixes:
                    raise KeyboardInterrupt

            patch.setattr(TritonAttention, "fill_shared_work", interrupt)
            with pytest.raises(KeyboardInterrupt):
                complete(got, make_pairs(1), GREEDY, arrive_every=1)
            got.reset()
        else:
            complete(got, make_pairs(1), GREEDY, arrive_every=1)
    outputs = complete(got, OTHERS, GREEDY, arrive_every=1)
    assert outputs == complete(expected, OTHERS, GREEDY, arrive_every=1)
    assert not got._runner._graphs.shared.work(MAX_NUM_SEQS).lengths.any()


# ---- sizes and inputs ---------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 16, 17, 48, 300, 4096])
def test_every_number_of_tokens_has_a_recording_that_is_not_much_larger(most):
    sizes = list(token_counts(most))
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    assert all(size <= 2 * before for before, size in pairwise(sizes))


def test_a_large_model_has_recordings_of_small_steps_only():
    assert max_recorded_tokens(600_000_000, 16_384, 132) == 4096
    assert max_recorded_tokens(8_000_000_000, 16_384, 132) == 562
    assert max_recorded_tokens(70_000_000_000, 16_384, 132) == 512
    assert max_recorded_tokens(600_000_000, 64, 132) == 64


def test_only_a_small_models_steps_admit_few_requests():
    assert max_admitted(600_000_000, 16_384, 132) == MAX_ADMITTED
    assert max_admitted(8_000_000_000, 16_384, 132) is None
    assert max_admitted(600_000_000, 2048, 132) is None


def test_a_smaller_gpu_is_waited_for_at_fewer_tokens():
    assert max_recorded_tokens(8_000_000_000, 16_384, 264) == 1125
    assert max_recorded_tokens(8_000_000_000, 16_384, 66) == 512


def test_what_is_not_set_is_what_it_was_at_first():
    memory = InputMemory({"a": (3, 0), "b": (5, 7)}, CPU)
    memory.set({"a": np.array([1, 2, 3]), "b": np.array([4])})
    assert memory["a"].tolist() == [1, 2, 3]
    assert memory["b"].tolist() == [4, 7, 7, 7, 7]
    memory.set({"b": np.array([[5, 6]])})
    assert memory["a"].tolist() == [0, 0, 0]
    assert memory["b"].tolist() == [5, 6, 7, 7, 7]


def test_what_is_there_already_is_not_sent_again():
    memory = InputMemory({"a": (3, 0)}, CPU)
    memory.set({"a": np.array([1, 2])})
    memory["a"][0] = 9
    memory.set({"a": np.array([1, 2])})
    assert memory["a"].tolist() == [9, 2, 0]
    memory.set({"a": np.array([1, 3])})
    assert memory["a"].tolist() == [1, 3, 0]
