"""Ranks on GPUs. What they compute is tested on one GPU, where the ranks are threads."""

import os
from dataclasses import replace
from itertools import product

import pytest
import torch
from checkpoints import FAMILIES, QUANTIZED
from thread_ranks import in_ranks
from torch import multiprocessing

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.build import build_engine
from minimal_vllm.runner.failures import RankFailedError, RankLostError
from tests.model.test_divided_quantized import SHAPE, STORED, write

pytestmark = pytest.mark.gpu
SEVERAL = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
PROMPTS = [[(7 * i + n) % 250 for i in range(n)] for n in (1, 17, 80, 150)]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
OPTIONS = {
    "device": "cuda",
    "dtype": "float32",
    "num_gpu_blocks_override": 100,
    "max_model_len": 256,
    "max_num_batched_tokens": 64,
    "max_num_seqs": 4,
}


def generate(engine, params=GREEDY):
    """The tokens of all prompts, by an engine itself."""
    for index, prompt in enumerate(PROMPTS):
        engine.add_request(str(index), prompt, params)
    ended = {}
    while engine.has_unfinished_requests:
        ended |= {each.request_id: each.outputs[0].token_ids for each in engine.step()}
    return [ended[str(index)] for index in range(len(PROMPTS))]


@pytest.mark.parametrize("family", [*FAMILIES, *QUANTIZED])
def test_kernels_compute_a_rank_s_part(checkpoint, family):
    check_ranks(EngineConfig(model=str(checkpoint(family)), enforce_eager=True, **OPTIONS))


@pytest.mark.parametrize("stored", STORED)
def test_kernels_compute_a_rank_s_part_of_quantized_weights(tmp_path, stored):
    path = str(write(tmp_path, SHAPE, STORED[stored]))
    options = {"enforce_eager": True, "skip_tokenizer_init": True, **OPTIONS}
    check_ranks(EngineConfig(model=path, **options))


def check_ranks(config):
    """Two ranks that are threads generate the tokens of one process."""
    expected = generate(build_engine(config).engine)

    def run(ranks):
        with torch.cuda.stream(torch.cuda.Stream()):
            own = replace(config, tensor_parallel_size=2)
            return generate(build_engine(own, ranks=ranks).engine)

    assert in_ranks(2, run) == [expected, expected]


def test_exchanges_are_recorded_in_graphs_and_given_up(tmp_path):
    from minimal_vllm.engine.ranks.nccl import NcclRanks
    from minimal_vllm.runner.capture import GraphCapture

    ranks = NcclRanks(tmp_path, 0, 1)
    x = torch.arange(6.0, device="cuda").view(2, 3)
    results = []

    def compute():
        results[:] = [ranks.add(x * 2), ranks.concatenate(x)]

    compute()  # NCCL connects the ranks, which it can't do in a recording
    graph = GraphCapture().record(compute)
    x += 1
    graph.replay()
    assert torch.equal(results[0], 2 * x)
    assert torch.equal(results[1], x)
    assert ranks.least(7) == 7
    ranks.raise_if_lost()
    ranks.give_up()
    with pytest.raises(RankLostError):
        ranks.raise_if_lost()


def test_more_ranks_than_gpus_are_rejected(checkpoint):
    size = 2 * torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"tensor_parallel_size is {size}, but PyTorch finds"):
        LLM(str(checkpoint("llama-mqa-biases")), tensor_parallel_size=size, **OPTIONS)


@SEVERAL
@pytest.mark.parametrize("options", [{}, {"enforce_eager": True}], ids=["graphs", "eager"])
@pytest.mark.parametrize("family", ["phi3", "qwen3-moe", "gemma3", "olmo3"])
def test_two_gpus_generate_the_tokens_of_one(checkpoint, family, options):
    path = str(checkpoint(family))
    found = LLM(path, tensor_parallel_size=2, **OPTIONS, **options)
    expected = LLM(path, **OPTIONS)
    for params in (GREEDY, SamplingParams(max_tokens=6, seed=5, top_p=0.9)):
        assert generate(found.engine, params) == generate(expected.engine, params)


def sums_of_rank(folder, index, results):
    """Compare sums with NCCL's, in a process that sees one GPU; the result says what differs."""
    os.environ["CUDA_VISIBLE_DEVICES"] = str(index)
    from minimal_vllm.engine.ranks.nccl import NcclRanks

    ranks, totals, differing = NcclRanks(folder, index, 2), [], []

    def compare(what, found, part):
        ranks.add_large(part)
        differing.extend([] if torch.equal(found, part) else [what])
        totals.append(found.double().sum().item())

    for number, (size, dtype) in enumerate(product(SIZES, (torch.bfloat16, torch.float32))):
        generator = torch.Generator("cuda").manual_seed(2 * number + index)
        part = torch.randn(size, device="cuda", generator=generator).to(dtype)
        compare(f"{size} {dtype}", ranks.add(part.clone()), part)
    results.put((differing, totals))


SIZES = (5, 4096, 70_000, 2_000_000, 20_000_000)
"""Numbers of parts that are added up in different ways."""


@SEVERAL
def test_sums_are_those_of_nccl(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [
        context.Process(target=sums_of_rank, args=(tmp_path, index, results)) for index in range(2)
    ]
    for each in ranks:
        each.start()
    (differing, totals), other = (results.get(timeout=100) for _ in ranks)
    for each in ranks:
        each.kill()
    assert not differing
    assert other == (differing, totals)


@SEVERAL
@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_two_gpus_guess_the_tokens_of_one(method):
    guessing = {"method": method, "num_speculative_tokens": 3}
    found = LLM(tensor_parallel_size=2, speculative_config=guessing, **OPTIONS)
    expected = LLM(**OPTIONS)
    for params in (GREEDY, SamplingParams(max_tokens=24, seed=5, top_p=0.9)):
        assert generate(found.engine, params) == generate(expected.engine, params)


@SEVERAL
def test_two_gpus_divide_weights_in_fp8(tmp_path):
    path = str(write(tmp_path, SHAPE, STORED["fp8-channel"]))
    options = {"skip_tokenizer_init": True, **OPTIONS}
    found = LLM(path, tensor_parallel_size=2, **options)
    assert generate(found.engine) == generate(LLM(path, **options).engine)


@SEVERAL
def test_the_death_of_a_rank_is_an_error_at_once(checkpoint):
    llm = LLM(str(checkpoint("phi3")), tensor_parallel_size=2, **OPTIONS)
    generate(llm.engine)
    (follower,) = llm.engine._followers._all
    follower.process.kill()
    with pytest.raises(RankFailedError, match=r"rank 1 .* killed by signal 9"):
        generate(llm.engine)
