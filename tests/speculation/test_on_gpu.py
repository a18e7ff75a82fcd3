"""Guesses on CUDA; the CPU without guesses is the oracle."""

import pytest
from checkpoints import FAMILIES

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.demo import DEMO_MODEL_DIR
from tests.speculation.eagle_heads import Listener, read_config, write_head
from tests.speculation.guessers import Knowing
from tests.speculation.test_same_tokens import (
    BROKEN,
    KNOWING,
    NGRAM,
    PARAMS,
    PROMPTS,
    assert_same_tokens,
    count_tokens,
    facts,
    learn,
)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("guesses_cost_nothing")]

OPTIONS = {"num_gpu_blocks_override": 600, "max_model_len": 256, "dtype": "float32"}
GUESSERS = {
    "knowing": KNOWING,
    "ngram": NGRAM,
    "broken": BROKEN,
    "draft": {"method": "draft_model"},
    "eagle": {"method": "eagle3"},
}
WAYS = {
    "everything": {},
    "kernels": {"enforce_eager": True},
    "not ahead": {"async_scheduling": False},
    "reference": {"attention_backend": "reference"},
    "few blocks": {"num_gpu_blocks_override": 16, "block_size": 16},
    "chunked": {"max_num_batched_tokens": 8, "max_num_seqs": 4},
}


def speculating(config, **options):
    config = {"num_speculative_tokens": 4, **config}
    return LLM(**{"device": "cuda", "speculative_config": config, **OPTIONS, **options})


@pytest.fixture(scope="module")
def plain():
    return LLM(device="cpu", **OPTIONS)


@pytest.fixture(scope="module")
def guessing():
    return {name: speculating(each) for name, each in GUESSERS.items()}


@pytest.mark.parametrize(
    ("guesser", "name"),
    [
        *(("knowing", name) for name in PARAMS),
        *(("ngram", name) for name in ("greedy", "penalized", "regex")),
        *(("draft", name) for name in ("greedy", "random", "schema")),
        *(("eagle", name) for name in ("greedy", "penalized", "several")),
        ("broken", "random"),
    ],
)
def test_the_tokens_are_those_of_the_cpu_without_guesses(plain, guessing, guesser, name):
    assert_same_tokens(plain, guessing[guesser], guesser, name)


@pytest.mark.parametrize("guesser", ["draft", "eagle"])
def test_guesses_are_right_now_and_then(guessing, guesser):
    llm = guessing[guesser]
    counts = count_tokens(llm)
    llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=40))
    assert 0 < counts["accepted"] < counts["guessed"]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head of random weights for the built-in model, which hardly ever guesses right."""
    shape = {"eagle_aux_hidden_state_layer_ids": [1, 3, 5], "intermediate_size": 256}
    folder = tmp_path_factory.mktemp("head")
    return write_head(folder, target=read_config(DEMO_MODEL_DIR), head_dim=64, **shape)


def eagle(head, **options):
    return speculating({"method": "eagle3", "model": str(head)}, **options)


@pytest.fixture(scope="module")
def with_head(head):
    return eagle(head)


@pytest.mark.parametrize("name", ["greedy", "random", "penalized", "schema", "logprobs", "several"])
def test_the_tokens_are_those_without_a_head(plain, with_head, name):
    assert_same_tokens(plain, with_head, "a random head", name)


def test_a_head_guesses_while_the_gpu_decides_how_many_guesses_hold(head, monkeypatch):
    listener = Listener(monkeypatch)
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    eagle(head).generate(PROMPTS, params)
    assert listener.followed


@pytest.mark.parametrize("way", WAYS)
def test_a_head_guesses_what_it_guesses_on_a_cpu(head, monkeypatch, way):
    """Near ties may be guessed either way."""
    prompts = [PROMPTS[0] + each for each in (*PROMPTS, " said", " was", " and", ".")]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    heard = []
    for device in ("cpu", "cuda"):
        listener = Listener(monkeypatch)
        llm = eagle(head, **({"device": "cpu"} if device == "cpu" else WAYS[way]))
        llm.generate(prompts, params)
        heard.append({tuple(known): guesses for known, guesses in listener.guesses if guesses})
    on_cpu, on_gpu = heard
    both = on_cpu.keys() & on_gpu.keys()
    same = [all(map(int.__eq__, on_cpu[known], on_gpu[known])) for known in both]
    assert len(same) > 15
    assert sum(same) >= 0.97 * len(same)


@pytest.mark.parametrize("way", WAYS)
def test_in_every_way(plain, way):
    prompts = [PROMPTS[0] + each for each in (*PROMPTS, " said", " was", " and", ".")]
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=24)
    expected = plain.generate(prompts, params)
    learn(expected)
    llm = speculating(KNOWING, **WAYS[way])
    counts = count_tokens(llm)
    assert facts(llm.generate(prompts, params)) == facts(expected)
    assert facts(llm.generate(prompts, params)) == facts(expected)
    assert counts["accepted"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_family(checkpoint, family):
    prompts = [[(7 * i + n) % 250 for i in range(n)] for n in (1, 17, 33, 150)]
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    options = {"model": str(checkpoint(family)), "max_num_batched_tokens": 64, "max_num_seqs": 4}
    expected = LLM(device="cpu", **{**OPTIONS, **options}).generate(prompts, params)
    Knowing.outputs = {
        tuple(prompt): [output.outputs[0].token_ids]
        for prompt, output in zip(prompts, expected, strict=True)
    }
    llm = speculating(KNOWING, **options)
    counts = count_tokens(llm)
    got = llm.generate(prompts, params)
    assert [each.outputs[0].token_ids for each in got] == [
        each.outputs[0].token_ids for each in expected
    ]
    assert counts["accepted"] > 10
