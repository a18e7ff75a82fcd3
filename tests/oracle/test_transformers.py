"""Token for token what Hugging Face transformers gives, greedy, in float32, whatever happens.

The oracle is a plain loop without a cache: the whole text through the model for every token. The
engine is put under each combination of conditions, and each condition is proved to have come
about: an engine that never preempts would pass all tests of preemption.
"""

from itertools import product

import pytest
import torch
from checkpoints import FAMILIES, QUANTIZED
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Mxfp4Config

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.engine.sizing import choose_groups
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.outputs import OutputKind

NUM_TOKENS = 20
BLOCK_SIZE = 16
CHUNK = 7
LENGTHS = [17, 16, 15, 32, 40, 5, 1]
PROMPTS = [[(7 * i * i + 31 * length + 3) % 250 for i in range(length)] for length in LENGTHS]
DISTURBER = [(11 * i * i + 5) % 250 for i in range(200)]
PARAMS = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
POOL_UNDER_PRESSURE = 10

CONDITIONS = list(
    product(
        ("alone", "batched"),
        ("whole", "chunked"),
        ("cold", "cached"),
        ("undisturbed", "preempted"),
    )
)

PAIRWISE = [
    ("alone", "whole", "cold", "undisturbed"),
    ("alone", "chunked", "cached", "preempted"),
    ("batched", "whole", "cached", "preempted"),
    ("batched", "chunked", "cold", "preempted"),
    ("batched", "chunked", "cached", "undisturbed"),
]
"""Any two of the conditions occur together in one of these."""
IN_EVERY_WAY = ("llama", "qwen3", "mistral-window", "smollm3-nope-window", "gemma3")
MATRIX = [
    (family, conditions)
    for family in FAMILIES
    for conditions in (CONDITIONS if family in IN_EVERY_WAY else PAIRWISE)
]
# Only their matrices differ from those of a family.
MATRIX += [(name, PAIRWISE[way]) for name in QUANTIZED for way in (2, 4)]


@torch.no_grad()
def continue_greedily(model, prompt):
    tokens = list(prompt)
    for _ in range(NUM_TOKENS):
        tokens.append(model(torch.tensor([tokens])).logits[0, -1].argmax().item())
    return tokens[len(prompt) :]


@pytest.fixture(scope="session")
def oracle(checkpoint):
    """A family's transformers model and its continuations of PROMPTS, computed once."""
    known = {}

    def of_family(family):
        if family not in known:
            several = "text_config" in FAMILIES.get(family, ())
            auto = AutoModelForImageTextToText if several else AutoModelForCausalLM
            dequantizing = {"quantization_config": Mxfp4Config(dequantize=True)}
            model = auto.from_pretrained(
                checkpoint(family),
                dtype=torch.float32,
                attn_implementation="eager",
                **(dequantizing if family in QUANTIZED else {}),
            ).eval()
            known[family] = model, [continue_greedily(model, prompt) for prompt in PROMPTS]
        return known[family]

    return of_family


class Witness:
    """Runs prompts and remembers, from the step records, what happened to them."""

    def __init__(self, folder, chunked, cached, num_blocks):
        self.records = []
        self.num_preempted_by_hand = 0
        max_model_len = min(num_blocks * BLOCK_SIZE, 256)
        groups = choose_groups(ModelConfig.from_checkpoint(folder), max_model_len)
        self.has_windows = any(groups.windows)
        self.llm = LLM(
            str(folder),
            observers=[self.records.append],
            skip_tokenizer_init=True,
            block_size=BLOCK_SIZE,
            num_gpu_blocks_override=num_blocks * groups.number,
            max_num_seqs=7,
            max_num_batched_tokens=CHUNK if chunked else 512,
            max_model_len=max_model_len,
            enable_prefix_caching=cached,
        )
        self.cached = cached

    def run(self, prompts, disturber=None, preempted=False):
        """The outputs of the prompts, in one batch, from a warm or cold cache."""
        if self.cached:
            self.llm.generate(prompts, SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
        self.records.clear()
        self.num_preempted_by_hand = 0
        if preempted and self.has_windows:
            outputs = self.run_and_preempt(prompts, PARAMS)
        elif disturber is None:
            outputs = self.llm.generate(prompts, PARAMS, use_tqdm=False)
        else:
            outputs = [self._run_beside(disturber, prompt) for prompt in prompts]
        for output in outputs:
            usable = (len(output.prompt_token_ids) - 1) // BLOCK_SIZE * BLOCK_SIZE
            assert output.num_cached_tokens <= (usable if self.cached else 0)
        return outputs

    def run_and_preempt(self, prompts, params):
        """Preempt each running request once, by hand: windows leave enough blocks for all."""
        engine, outputs, preempted = self.llm.engine, {}, set()
        for index, prompt in enumerate(prompts):
            engine.add_request(str(index), prompt, params, output_kind=OutputKind.FINAL_ONLY)
        while engine.has_unfinished_requests:
            outputs |= {int(each.request_id): each for each in engine.step()}
            last = engine.scheduler.running[-1:]
            if last and last[0] not in preempted and last[0].num_output_tokens > 5:
                preempted.add(engine.scheduler.running.pop())
                engine.scheduler.preempt(*last)
        self.num_preempted_by_hand = len(preempted)
        return [outputs[index] for index in range(len(prompts))]

    def _run_beside(self, disturber, prompt):
        """Run ``prompt`` beside one who takes its blocks away; then let it go on alone."""
        engine = self.llm.engine
        endless = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
        engine.add_request("disturber", disturber, endless)
        while not any(each.sampled_tokens for each in self.last_scheduled()):
            engine.step()
        engine.add_request("prompt", prompt, PARAMS, output_kind=OutputKind.FINAL_ONLY)
        while self.num_preemptions == 0:
            assert engine.has_unfinished_requests
            engine.step()
        assert self.records[-1].preempted == ("prompt",)
        engine.abort("disturber")
        while engine.has_unfinished_requests:
            outputs = engine.step()
        return outputs[0]

    def last_scheduled(self):
        return self.records[-1].scheduled if self.records else ()

    @property
    def num_preemptions(self):
        by_engine = sum(len(record.preempted) for record in self.records)
        return by_engine + self.num_preempted_by_hand

    @property
    def chunks(self):
        """Parts of prompts after which no token was sampled."""
        return [
            each
            for record in self.records
            for each in record.scheduled
            if not each.sampled_tokens and each.request_id != "disturber"
        ]


def num_blocks_of(prompt):
    return -(-len(prompt) // BLOCK_SIZE)


def run_alone(folder, chunked, cached, preempted):
    """Each prompt in an engine that has forgotten the others."""
    num_blocks = 12
    witness = Witness(folder, chunked, cached, num_blocks)
    outputs = []
    for prompt in PROMPTS:
        # While the prompt grows by 20 tokens it needs a block more, and so does the disturber,
        # which has 2 tokens to go: together they need one more than there are.
        disturber = DISTURBER[: (num_blocks - num_blocks_of(prompt) - 1) * BLOCK_SIZE - 2]
        witness.llm.engine.reset()
        (output,) = witness.run([prompt], disturber if preempted else None, preempted)
        outputs.append(output)
        assert (witness.num_preemptions > 0) is preempted
        num_cached = output.num_cached_tokens
        assert num_cached == ((len(prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE if cached else 0)
        assert chunked or not witness.chunks
        if chunked and len(prompt) - num_cached > CHUNK:
            assert len(witness.chunks) >= (len(prompt) - num_cached - 1) // CHUNK
    return outputs


def run_batched(folder, chunked, cached, preempted):
    witness = Witness(folder, chunked, cached, POOL_UNDER_PRESSURE if preempted else 64)
    outputs = witness.run(PROMPTS, preempted=preempted)
    assert (witness.num_preemptions > 0) is preempted
    assert any(output.num_cached_tokens for output in outputs) is cached
    assert bool(witness.chunks) is chunked
    assert max(len(record.scheduled) for record in witness.records) >= 4
    return outputs


@pytest.mark.parametrize(
    ("family", "conditions"), MATRIX, ids=[f"{name}-{'-'.join(way)}" for name, way in MATRIX]
)
def test_greedy_tokens_are_those_of_transformers(family, conditions, checkpoint, oracle):
    _, expected = oracle(family)
    crowd, *_ = conditions
    flags = {condition: condition in conditions for condition in ("chunked", "cached", "preempted")}
    run = run_alone if crowd == "alone" else run_batched
    outputs = run(checkpoint(family), **flags)
    assert [output.outputs[0].token_ids for output in outputs] == expected


@torch.no_grad()
def transformers_logprobs(model, tokens):
    """``[len(tokens), V]``: row ``p`` is about the token at ``p + 1``."""
    return model(torch.tensor([tokens])).logits[0].log_softmax(-1)


def assert_logprobs_agree(entry, expected, token, num_top):
    """One position's ``{token: Logprob}`` against transformers' row ``[V]`` for it.

    Float32 rounds in proportion to the logits: both are within 3e-6 of their range from float64.
    """
    bound = 1e-5 * (expected.max() - expected.min()).item()
    for token_id, each in entry.items():
        value = expected[token_id].item()
        assert each.logprob == pytest.approx(value, abs=bound)
        # Of two tokens that are as likely up to rounding, either may come first.
        best = (expected > value + 2 * bound).sum().item() + 1
        worst = (expected > value - 2 * bound).sum().item()
        assert best <= each.rank <= worst
    ranks = sorted(each.rank for each in entry.values())
    assert ranks[:num_top] == list(range(1, num_top + 1))
    assert len(entry) == num_top + (entry[token].rank > num_top)


@pytest.mark.parametrize("crowd", ["undisturbed", "preempted and chunked"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_transformers(family, crowd, checkpoint, oracle):
    model, _ = oracle(family)
    preempted = crowd != "undisturbed"
    witness = Witness(
        checkpoint(family), preempted, False, POOL_UNDER_PRESSURE if preempted else 64
    )
    params = SamplingParams(
        temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=3, prompt_logprobs=2
    )
    if preempted and witness.has_windows:
        outputs = witness.run_and_preempt(PROMPTS, params)
    else:
        outputs = witness.llm.generate(PROMPTS, params, use_tqdm=False)
    assert (witness.num_preemptions > 0) is bool(witness.chunks) is preempted
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        completion = output.outputs[0]
        expected = transformers_logprobs(model, prompt + completion.token_ids)
        first, *others = output.prompt_logprobs
        assert first is None
        assert len(others) == len(prompt) - 1
        for position, entry in enumerate(others):
            assert_logprobs_agree(entry, expected[position], prompt[position + 1], 2)
        for index, (token, entry) in enumerate(
            zip(completion.token_ids, completion.logprobs, strict=True)
        ):
            assert_logprobs_agree(entry, expected[len(prompt) - 1 + index], token, 3)
        assert completion.cumulative_logprob == pytest.approx(
            sum(
                entry[token].logprob
                for token, entry in zip(completion.token_ids, completion.logprobs, strict=True)
            )
        )
