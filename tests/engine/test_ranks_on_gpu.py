"""Ranks on GPUs. What they compute is tested on one GPU, where the ranks are threads."""

import gc
import os
from dataclasses import replace
from itertools import product

import pytest
import torch
from checkpoints import FAMILIES, QUANTIZED, random_weights, write_json, write_weights
from thread_ranks import in_ranks
from torch import multiprocessing

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.build import build_engine
from minimal_vllm.model.deferred import computed
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


def complete(engine, params):
    """The outputs of all prompts, by an engine itself."""
    for index, prompt in enumerate(PROMPTS):
        engine.add_request(str(index), prompt, params)
    ended = {}
    while engine.has_unfinished_requests:
        ended |= {each.request_id: each for each in engine.step()}
    return [ended[str(index)] for index in range(len(PROMPTS))]


def generate(engine, params=GREEDY):
    """The tokens of all prompts."""
    return [each.outputs[0].token_ids for each in complete(engine, params)]


def log_probabilities(engine):
    """The log-probabilities of all prompts' tokens but their first ones."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    outputs = complete(engine, params)
    return torch.tensor([each for output in outputs for each in of_prompt(output)])


def of_prompt(output):
    """The log-probabilities of a prompt's tokens but the first."""
    places = zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
    return [place[token].logprob for token, place in places if place is not None]


@pytest.mark.parametrize("family", [*FAMILIES, *QUANTIZED])
def test_kernels_compute_a_rank_s_part(checkpoint, family):
    check_ranks(EngineConfig(model=str(checkpoint(family)), enforce_eager=True, **OPTIONS))


# In FP8, inputs are rounded to 3 bits of mantissa, so sums in another order give other tokens.
@pytest.mark.parametrize("stored", [each for each in STORED if not each.startswith("fp8")])
def test_kernels_compute_a_rank_s_part_of_quantized_weights(tmp_path, stored):
    path = str(write(tmp_path, SHAPE, STORED[stored]))
    options = {"enforce_eager": True, "skip_tokenizer_init": True, **OPTIONS}
    check_ranks(EngineConfig(model=path, **options))


def check_ranks(config):
    """Two ranks that are threads generate the tokens of one process."""
    expected = generate(build_engine(config).engine)
    assert in_two_ranks(config, generate) == [expected, expected]


def in_two_ranks(config, function):
    """What a function of an engine returns in each of two ranks that are threads."""

    def run(ranks):
        with torch.cuda.stream(torch.cuda.Stream()):
            own = replace(config, tensor_parallel_size=2)
            return function(build_engine(own, ranks=ranks).engine)

    return in_ranks(2, run)


# A rank that has a part of a row of inputs rounds it to FP8 with a scale of its own.
@pytest.mark.parametrize("stored", [each for each in STORED if each.startswith("fp8")])
def test_fp8_in_ranks_is_as_close_to_unrounded_inputs_as_in_one_process(tmp_path, stored):
    path = str(write(tmp_path, SHAPE, STORED[stored]))
    options = {"enforce_eager": True, "skip_tokenizer_init": True, **OPTIONS}
    config = EngineConfig(model=path, **options)
    exact = log_probabilities(build_engine(replace(config, device="cpu")).engine)
    alone = log_probabilities(build_engine(config).engine)
    first, second = in_two_ranks(config, log_probabilities)
    assert torch.equal(first, second)
    assert (first - exact).std() < 1.1 * (alone - exact).std()


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


def exchanges_of_rank(folder, index, results):
    """Compare exchanges with NCCL's, in a process that sees one GPU; say what differs."""
    os.environ["CUDA_VISIBLE_DEVICES"] = str(index)
    from minimal_vllm.engine.ranks.nccl import NcclRanks

    ranks = NcclRanks(folder, index, 2)
    results.put([compare(ranks) for compare in (compare_sums, compare_norms, compare_columns)])


def compare_sums(ranks):
    """What differs, and sums of the results, which are the same in all ranks."""
    totals, differing = [], []
    for number, (size, dtype) in enumerate(product(SIZES, (torch.bfloat16, torch.float32))):
        generator = torch.Generator("cuda").manual_seed(2 * number + ranks.index)
        part = torch.randn(size, device="cuda", generator=generator).to(dtype)
        found = computed(ranks.add(part.clone()))
        ranks.add_large(part)
        differing.extend([] if torch.equal(found, part) else [f"{size} {dtype}"])
        totals.append(found.double().sum().item())
    return differing, totals


def compare_norms(ranks):
    """The same for sums that end in the residual stream and its norm."""
    from minimal_vllm.model.triton_modules import PartOfSum, TritonRMSNorm

    totals, differing = [], []
    for number, (size, dtype) in enumerate(KINDS):
        begin_norms_again(ranks)
        own = torch.Generator("cuda").manual_seed(2 * number + ranks.index)
        same = torch.Generator("cuda").manual_seed(number)
        norm = TritonRMSNorm("norm", size, 1e-6).to("cuda", dtype)
        norm.weight.data.normal_(generator=same)
        for tokens in TOKENS:
            found = torch.randn(tokens, size, device="cuda", generator=same).to(dtype)
            expected = found.clone()
            for _ in range(3):
                part = torch.randn(tokens, size, device="cuda", generator=own).to(dtype).relu()
                deferred = ranks.add(part.clone())
                normed, found = norm.forward(deferred, found)
                ranks.add_large(part)
                expected_normed, expected = norm.forward(part, expected)
                is_equal = isinstance(deferred, PartOfSum) and torch.equal(normed, expected_normed)
                differing.extend([] if is_equal else [f"{tokens} x {size} {dtype}"])
                totals.append(normed.double().sum().item())
            is_equal = torch.equal(computed(found), expected)
            differing.extend([] if is_equal else [f"stream of {tokens} x {size} {dtype}"])
    return differing, totals


def begin_norms_again(ranks):
    """Forget vectors of another kind. An engine has one kind only."""
    torch.cuda.synchronize()
    ranks.least(0)
    norms = ranks._norms
    for each in (*norms._parts[ranks.index], *norms._notes):
        each.zero_()
    norms._kind = None
    torch.cuda.synchronize()
    ranks.least(0)


def compare_columns(ranks):
    """The same for columns that are put side by side."""
    totals, differing = [], []
    for rows, size, width in ((1, 75_968, 151_936), (256, 75_968, 151_936), (3, 501, 1001)):
        generator = torch.Generator("cuda").manual_seed(size)
        whole = torch.randn(rows, 2 * size, device="cuda", generator=generator).bfloat16()
        part = whole[:, ranks.index * size : (ranks.index + 1) * size]
        for _ in range(3):
            out = torch.zeros(rows, width, dtype=whole.dtype, device="cuda")
            found = ranks.concatenate(part, out)
            differing.extend([] if torch.equal(found, whole[:, :width]) else [f"{rows} {size}"])
        totals.append(found.double().sum().item())
    return differing, totals


SIZES = (5, 4096, 70_000, 2_000_000, 20_000_000)
"""Numbers of parts that are added up in different ways."""
KINDS = ((4096, torch.bfloat16), (2880, torch.float32))
"""Kinds of vectors of which sums end in a norm."""
TOKENS = (2, 9, 64, 7, 128, 1023, 3, 2001)
"""Numbers of tokens of sums that end in a norm, in different ways."""


@SEVERAL
def test_exchanges_have_the_results_of_nccl(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [
        context.Process(target=exchanges_of_rank, args=(tmp_path, index, results))
        for index in range(2)
    ]
    for each in ranks:
        each.start()
    one, other = (results.get(timeout=100) for _ in ranks)
    for each in ranks:
        each.kill()
    assert [differing for differing, _ in one] == [[], [], []]
    assert one == other


@SEVERAL
@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_two_gpus_guess_the_tokens_of_one(method):
    guessing = {"method": method, "num_speculative_tokens": 3}
    found = LLM(tensor_parallel_size=2, speculative_config=guessing, **OPTIONS)
    expected = LLM(**OPTIONS)
    for params in (GREEDY, SamplingParams(max_tokens=24, seed=5, top_p=0.9)):
        assert generate(found.engine, params) == generate(expected.engine, params)


def complete_long_prompts(path, results):
    """Put tokens, and log-probabilities of the prompts', by two ranks and then by one process."""
    options = {
        **OPTIONS,
        "max_model_len": 1500,
        "max_num_batched_tokens": 1024,
        "num_gpu_blocks_override": 200,
        "skip_tokenizer_init": True,
    }
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, prompt_logprobs=0)
    prompts = [[(7 * i + n) % 250 for i in range(n)] for n in (1400, 701)]
    for size in (2, 1):
        llm = LLM(path, tensor_parallel_size=size, **options)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        results.put([(each.outputs[0].token_ids, of_prompt(each)) for each in outputs])
        del llm
        gc.collect()  # which must not wait for the graphs, of which some have sums by NCCL


@SEVERAL
def test_two_gpus_divide_the_tokens_of_long_prompts(tmp_path):
    shape = {**SHAPE, "hidden_size": 2048, "max_position_embeddings": 4096}
    write_json(tmp_path / "config.json", shape)
    write_weights(tmp_path, random_weights(shape))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    # A process of its own, since only the first engine of a process divides tokens.
    process = context.Process(target=complete_long_prompts, args=(str(tmp_path), results))
    process.start()
    found, expected = results.get(timeout=80), results.get(timeout=80)
    process.join(timeout=20)
    assert process.exitcode == 0
    for (tokens, logprobs), (expected_tokens, expected_logprobs) in zip(
        found, expected, strict=True
    ):
        assert tokens == expected_tokens
        assert logprobs == pytest.approx(expected_logprobs, abs=1e-3)


@SEVERAL
def test_the_death_of_a_rank_is_an_error_at_once(checkpoint):
    llm = LLM(str(checkpoint("phi3")), tensor_parallel_size=2, **OPTIONS)
    generate(llm.engine)
    (follower,) = llm.engine._followers._all
    follower.process.kill()
    with pytest.raises(RankFailedError, match=r"rank 1 .* killed by signal 9"):
        generate(llm.engine)
