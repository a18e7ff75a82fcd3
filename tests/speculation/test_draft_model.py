"""A draft model guesses, and its cache has what the model's has."""

import pytest
import torch

from minimal_vllm import LLM, SamplingParams, StructuredOutputsParams
from minimal_vllm.cache.memory import DeviceMemory
from minimal_vllm.cli.info import gather
from minimal_vllm.config import EngineConfig
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.engine import build
from minimal_vllm.engine.speculating_scheduler import SpeculatingScheduler
from minimal_vllm.speculation.draft_cache import in_batches
from minimal_vllm.step.plan import ScheduledRequest

pytestmark = pytest.mark.usefixtures("guesses_cost_nothing")

PROMPTS = ["It was a dark and stormy night, and", "My dear sister,", "The captain said no."]
DRAFT = {"method": "draft_model", "num_speculative_tokens": 3}


def make(**options):
    return LLM(**{"num_gpu_blocks_override": 300, "max_model_len": 256, **options})


@pytest.fixture(scope="module")
def plain():
    return make()


@pytest.fixture(scope="module")
def drafting():
    return make(speculative_config=DRAFT, disable_log_stats=False)


def texts(outputs):
    return [(each.token_ids, each.text) for output in outputs for each in output.outputs]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 0.8, "seed": 3, "n": 2, "repetition_penalty": 1.2, "min_tokens": 5},
        {
            "temperature": 0.8,
            "seed": 3,
            "structured_outputs": StructuredOutputsParams(regex="(one, |two, )+three"),
        },
    ],
    ids=["greedy", "random", "grammar"],
)
def test_the_tokens_are_those_without_it(plain, drafting, params):
    params = SamplingParams(**params, max_tokens=20)
    assert texts(drafting.generate(PROMPTS, params)) == texts(plain.generate(PROMPTS, params))
    accepted = {metric.name: metric for metric in drafting.get_metrics()}
    assert accepted["vllm:spec_decode_num_accepted_tokens"].value > 0


@pytest.mark.parametrize(
    "options",
    [
        {"num_gpu_blocks_override": 18, "block_size": 4, "max_model_len": 60},
        {"max_num_batched_tokens": 8, "max_num_seqs": 4},
    ],
    ids=["preempted", "chunked"],
)
def test_in_every_schedule(plain, options):
    params = SamplingParams(temperature=0, max_tokens=20)
    llm = make(speculative_config=DRAFT, **options)
    prompts = [PROMPTS[0] + each for each in (" the", " a", " so", " it", "")]
    expected = texts(plain.generate(prompts, params))
    assert texts(llm.generate(prompts, params)) == expected
    assert texts(llm.generate(prompts, params)) == expected  # with a warm prefix cache
    llm.engine.scheduler.check()


def cached_keys(llm, request, cache):
    """The keys of a request's tokens in the first layer of a cache."""
    block_size = llm.config.block_size
    positions = range(request.num_computed_tokens)
    slots = [(request.block_table[i // block_size], i % block_size) for i in positions]
    return torch.stack([cache.key[block, :, offset] for block, offset in slots])


def test_its_cache_holds_the_keys_of_the_same_tokens(drafting, monkeypatch):
    """Whether guesses were made all the time, or only now and then, in which case it catches up."""
    draft = drafting.engine._runner._draft
    prompt = list(range(300, 340))
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)

    def keys_after(counts):
        draft.model.caches[0].key.zero_()
        monkeypatch.setattr(
            SpeculatingScheduler,
            "count_guesses",
            lambda self, plan, entries, guesses: [next(counts) for _ in entries],
        )
        drafting.engine.add_request("a", prompt, params)
        (request,) = drafting.engine._outputs.requests("a")
        while request.num_computed_tokens < 70:
            drafting.engine.step()
        keys = cached_keys(drafting, request, draft.model.caches[0])[:68]
        drafting.engine.reset()  # other tests share the engine
        return keys

    always = keys_after(iter([3] * 100))
    sometimes = keys_after(iter([3, 0, 0, 1, 0, 2, 3] * 20))
    assert always.abs().sum(dim=(1, 2)).min() > 0
    num_known = min(len(always), len(sometimes))
    filled = sometimes.abs().sum(dim=(1, 2)) > 0
    assert filled[:60].all()
    torch.testing.assert_close(always[:num_known][filled], sometimes[:num_known][filled])


def test_with_windows_beside_layers_without(checkpoint):
    folder = str(checkpoint("gemma3"))
    params = SamplingParams(temperature=0.8, seed=2, max_tokens=20, ignore_eos=True)
    prompts = [{"prompt_token_ids": [7 + each, *range(20, 60)]} for each in range(3)]
    options = {"model": folder, "max_model_len": 100, "block_size": 4}
    expected = texts(make(**options).generate(prompts, params))
    config = {**DRAFT, "model": str(checkpoint("llama"))}
    assert texts(make(**options, speculative_config=config).generate(prompts, params)) == expected


def test_its_part_of_each_block_is_counted(monkeypatch):
    memory = DeviceMemory("cpu", total=8 << 30, free=8 << 30, used_by_process=0)
    monkeypatch.setattr(build, "measure_memory", lambda *_: memory)
    options = {"gpu_memory_utilization": 0.2}
    without = LLM(**options).built.num_blocks
    with_it = LLM(**options, speculative_config=DRAFT).built.num_blocks
    # Per token: 6 layers with 2 heads, and 2 layers with 1 head. A step takes more memory, too.
    assert with_it == pytest.approx(without * 12 / 14, rel=0.06)


def test_info_counts_it_too():
    def fit(**options):
        (found, *_) = gather(
            EngineConfig(model=str(DEMO_MODEL_DIR), device="cpu", **options)
        ).devices
        return found

    without, with_it = fit(), fit(speculative_config=DRAFT)
    assert with_it.draft_weights == with_it.weights - without.weights == 4 * 1_574_080
    assert with_it.kv_per_block * 12 == without.kv_per_block * 14
    assert with_it.kv_per_token * 12 == without.kv_per_token * 14


@pytest.mark.parametrize(
    ("family", "config", "options", "complaint"),
    [
        (None, {"model": "llama"}, {}, r"has a vocabulary of \d+ tokens, but the model has 4,096"),
        ("mistral-window", {"model": "llama"}, {"max_model_len": 64}, "use the method ngram"),
        ("llama", {"model": "gemma3"}, {"max_model_len": 100}, "choose one without windows"),
        ("llama", {"model": "llama", "method": "ngram"}, {}, "needs the method draft_model"),
    ],
)
def test_a_draft_model_that_can_not_guess_is_refused(
    checkpoint, family, config, options, complaint
):
    options = {**options, **({"model": str(checkpoint(family))} if family else {})}
    config = {**DRAFT, **config, "model": str(checkpoint(config["model"]))}
    with pytest.raises(ValueError, match=complaint) as raised:
        make(**options, speculative_config=config)
    assert "\n" not in str(raised.value)


def test_catching_up_never_exceeds_the_token_budget():
    entries = [ScheduledRequest(name, 5, count, 1) for name, count in (("a", 3), ("b", 9))]
    batches = [
        [(each.request, each.start, each.num_new, each.num_logits) for each in batch]
        for batch in in_batches(entries, 4)
    ]
    assert batches == [
        [("a", 5, 3, 1), ("b", 5, 1, 0)],
        [("b", 6, 4, 0)],
        [("b", 10, 4, 1)],
    ]
