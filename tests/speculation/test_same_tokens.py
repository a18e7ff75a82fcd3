"""With guesses, right or wrong, a request gets what it gets without them."""

import pytest

from minimal_vllm import LLM, SamplingParams, StructuredOutputsParams
from minimal_vllm.config import SpeculativeConfig
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.outputs import OutputKind
from minimal_vllm.speculation import rows
from tests.speculation.guessers import Knowing

pytestmark = pytest.mark.usefixtures("guesses_cost_nothing")

NGRAM = {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3}
KNOWING = {"method": "tests.speculation.guessers:Knowing"}
BROKEN = {"method": "tests.speculation.guessers:Broken"}
EAGLE = {"method": "eagle3"}
PROMPTS = [
    "The captain said no. The captain said no. The captain",
    "My dear sister, and my dear brother, and my dear",
    "One, two, three, one, two, three, one",
]
RANDOM = {"temperature": 0.9, "seed": 5, "max_tokens": 18}
PARAMS = {
    "greedy": {"temperature": 0, "max_tokens": 20},
    "random": RANDOM,
    "filtered": {**RANDOM, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    "penalized": {**RANDOM, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    "present once": {"temperature": 0, "presence_penalty": 1.5, "max_tokens": 18},
    "bad words": {"temperature": 0, "bad_words": ["captain", " sister", " said no"]},
    "biased": {**RANDOM, "logit_bias": {12: 4.0}, "allowed_token_ids": list(range(2, 900))},
    "minimum": {**RANDOM, "min_tokens": 12, "stop_token_ids": list(range(200, 400))},
    "stop token": {**RANDOM, "stop_token_ids": list(range(200, 300))},
    "stop strings": {**RANDOM, "stop": ["he ", "y d"], "include_stop_str_in_output": True},
    "logprobs": {**RANDOM, "logprobs": 3, "prompt_logprobs": 1},
    "several": {**RANDOM, "n": 3},
    "one token": {"temperature": 0, "max_tokens": 1},
    "schema": {
        **RANDOM,
        "structured_outputs": StructuredOutputsParams(
            json={"type": "array", "items": {"enum": ["one", "two"]}, "minItems": 3, "maxItems": 5}
        ),
    },
    "regex": {
        **RANDOM,
        "structured_outputs": StructuredOutputsParams(regex="(one, two, )+three"),
        "stop": ["two, o"],
    },
}


def make(**options):
    return LLM(**{"num_gpu_blocks_override": 600, "max_model_len": 256, **options})


def speculating(config, **options):
    return make(speculative_config={"num_speculative_tokens": 4, **config}, **options)


@pytest.fixture(scope="module")
def plain():
    return make()


@pytest.fixture(scope="module")
def guessing():
    return {name: speculating(each) for name, each in GUESSERS.items()}


GUESSERS = {"knowing": KNOWING, "ngram": NGRAM, "broken": BROKEN, "eagle": EAGLE}


def facts(outputs):
    return [
        (each.token_ids, each.text, each.finish_reason, each.stop_reason, told(each.logprobs))
        for output in outputs
        for each in output.outputs
    ] + [told(output.prompt_logprobs) for output in outputs]


def told(logprobs):
    """What log-probabilities say, to the digits that do not depend on the batch."""
    return logprobs and [
        each and {token: (round(one.logprob, 2), one.rank) for token, one in each.items()}
        for each in logprobs
    ]


def learn(outputs):
    Knowing.outputs = {
        tuple(output.prompt_token_ids): [each.token_ids for each in output.outputs]
        for output in outputs
    }


def count_tokens(llm):
    """Count what is guessed and what holds, in the steps to come."""
    counts = {"guessed": 0, "accepted": 0}

    def watch(record):
        for entry in record.scheduled:
            counts["guessed"] += entry.num_rejected + len(entry.sampled_tokens) - 1
            counts["accepted"] += max(len(entry.sampled_tokens) - 1, 0)

    llm.engine._reporter._observers = [watch]
    return counts


def assert_same_tokens(plain, llm, guesser, name):
    """Hold an engine that guesses to one that doesn't; see ``GUESSERS`` and ``PARAMS``."""
    params = SamplingParams(**PARAMS[name])
    expected = plain.generate(PROMPTS, params)
    learn(expected)
    counts = count_tokens(llm)
    assert facts(llm.generate(PROMPTS, params)) == facts(expected)
    if guesser in ("knowing", "eagle") and params.max_tokens != 1:
        assert counts["accepted"] > 0
    llm.engine.scheduler.check()


@pytest.mark.parametrize(
    ("guesser", "name"),
    [
        *((guesser, name) for guesser in ("knowing", "eagle") for name in PARAMS),
        *(("ngram", name) for name in ("greedy", "penalized", "regex")),
        *(("broken", name) for name in ("random", "logprobs")),
    ],
)
def test_the_tokens_are_those_without_guesses(plain, guessing, guesser, name):
    assert_same_tokens(plain, guessing[guesser], guesser, name)


@pytest.mark.parametrize("config", [KNOWING, EAGLE], ids=["knowing", "eagle"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_gpu_blocks_override": 16, "block_size": 8, "max_model_len": 80},
        {"max_num_batched_tokens": 8, "max_num_seqs": 4},
        {"max_num_seqs": 3, "enable_prefix_caching": False, "scheduling_policy": "priority"},
    ],
    ids=["preempted", "chunked", "by priority"],
)
def test_in_every_schedule(plain, config, options):
    prompts = [PROMPTS[0] + each for each in (*PROMPTS, " said", " was", " and", ".")]
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=24)
    expected = plain.generate(prompts, params)
    learn(expected)
    llm = speculating(config, **options)
    priorities = list(range(len(prompts)))[::-1] if "scheduling_policy" in options else None
    counts = count_tokens(llm)
    assert facts(llm.generate(prompts, params, priority=priorities)) == facts(expected)
    assert counts["accepted"] > 0
    if "num_gpu_blocks_override" in options:
        assert llm.engine.scheduler.pool.num_free == 16
    assert facts(llm.generate(prompts, params, priority=priorities)) == facts(expected)


@pytest.mark.parametrize("family", ["gemma3", "mixtral"])
def test_of_every_kind_of_layer(checkpoint, family):
    """Windows have block tables of their own, and experts see guesses as tokens."""
    folder = str(checkpoint(family))
    params = SamplingParams(temperature=0.8, seed=2, max_tokens=24, ignore_eos=True)
    prompts = [{"prompt_token_ids": [7 + each, *range(20, 60)]} for each in range(3)]
    expected = make(model=folder, max_model_len=100).generate(prompts, params)
    learn(expected)
    llm = speculating(KNOWING, model=folder, max_model_len=100, block_size=4)
    counts = count_tokens(llm)
    assert facts(llm.generate(prompts, params)) == facts(expected)
    assert counts["accepted"] > 10


def test_a_wrong_guess_that_is_kept_would_be_noticed(plain, guessing, monkeypatch):
    params = SamplingParams(temperature=0, max_tokens=20)
    expected = plain.generate(PROMPTS, params)
    learn(expected)
    monkeypatch.setattr(rows, "count_kept", lambda guesses, sampled: len(sampled))
    assert facts(guessing["knowing"].generate(PROMPTS, params)) != facts(expected)


def test_a_stream_has_no_token_twice(plain, guessing):
    params = SamplingParams(temperature=0, max_tokens=20)
    (expected,) = plain.generate(PROMPTS[:1], params)
    learn([expected])
    engine = guessing["knowing"].engine
    engine.add_request("a", expected.prompt_token_ids, params, output_kind=OutputKind.DELTA)
    parts = []
    while engine.has_unfinished_requests:
        parts += [output.outputs[0] for output in engine.step()]
    assert [token for part in parts for token in part.token_ids] == expected.outputs[0].token_ids
    assert "".join(part.text for part in parts) == expected.outputs[0].text
    assert max(len(part.token_ids) for part in parts) > 1


@pytest.mark.parametrize(
    ("config", "options", "complaint"),
    [
        ({"num_speculative_tokens": 17}, {}, r"17, but must be at most block_size \(16\)"),
        (
            {"num_speculative_tokens": 8},
            {"max_num_batched_tokens": 8, "max_num_seqs": 8},
            r"must be below max_num_batched_tokens \(8\)",
        ),
        ({"num_speculative_tokens": None}, {}, "num_speculative_tokens is missing"),
        ({"method": "medusa"}, {}, "should be one of ngram"),
        ({"method": "tests.speculation.guessers:Nobody"}, {}, "has no class Nobody"),
        ({"method": "builtins:dict"}, {}, "it lacks propose"),
        ({"prompt_lookup_min": 5, "prompt_lookup_max": 4}, {}, r"min \(5\) must be at most"),
        ({**KNOWING, "prompt_lookup_min": 5}, {}, "need the method ngram"),
        ({"ngram_size": 3}, {}, "ngram_size is not a known argument|ngram_size"),
        ({}, {"scheduler": "a.py:B"}, "needs the built-in scheduler"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(config, options, complaint):
    with pytest.raises(ValueError, match=complaint) as raised:
        speculating(config, model=str(DEMO_MODEL_DIR), **options)
    assert "\n" not in str(raised.value)


def test_the_lengths_that_are_looked_up_are_as_in_vllm():
    def lengths(**given):
        return SpeculativeConfig(num_speculative_tokens=1, **given).lookup_lengths

    assert lengths() == (5, 5)
    assert lengths(prompt_lookup_max=4) == (4, 4)
    assert lengths(prompt_lookup_min=3) == (3, 3)
    assert lengths(prompt_lookup_min=2, prompt_lookup_max=7) == (2, 7)
