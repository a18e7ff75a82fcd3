"""The experts that a step uses are counted if somebody reads their number, and only then."""

from collections import defaultdict

import pytest
import torch

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.engine.watched_experts import WatchedMoE, make_tally
from minimal_vllm.model.experts import Experts
from minimal_vllm.model.layers import MoE
from minimal_vllm.trace.step_record import Listener, RequestRecord, StepRecord
from minimal_vllm_lab.view.token_lens import LensQuery, TokenLens

PROMPTS = [[1, 2, 3], [(7 * i) % 250 for i in range(40)], [9]]
PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


class Reader(Listener):
    reads_experts = True

    def __init__(self):
        self.records = []

    def __call__(self, record):
        self.records.append(record)


def make_llm(folder, *observers):
    return LLM(
        str(folder),
        observers=observers,
        device="cpu",
        num_gpu_blocks_override=64,
        max_model_len=128,
        max_num_batched_tokens=16,
        max_num_seqs=4,
    )


@pytest.fixture
def computed(monkeypatch):
    """The experts that were computed since it was last cleared, by layer."""
    computed = defaultdict(set)
    compute = Experts.compute_expert

    def note(self, index, x):
        computed[id(self)].add(index)
        return compute(self, index, x)

    monkeypatch.setattr(Experts, "compute_expert", note)
    return computed


@pytest.mark.parametrize(
    ("family", "num_layers"),
    [("qwen3-moe", 3), ("qwen3-moe-some-dense", 1), ("gpt-oss-mxfp4", 4), ("llama", 0)],
)
def test_a_step_s_record_has_the_number_of_experts_that_were_computed(
    checkpoint, family, num_layers, computed
):
    reader = Reader()
    llm = make_llm(checkpoint(family), reader)
    for index, prompt in enumerate(PROMPTS):
        llm.engine.add_request(str(index), prompt, PARAMS)
    counts = []
    while llm.engine.has_unfinished_requests:
        computed.clear()
        llm.engine.step()
        counts.append(reader.records[-1].experts_used)
        assert sorted(counts[-1]) == sorted(map(len, computed.values()))
        assert len(counts[-1]) == num_layers
    assert len(set(counts)) > 1 or not num_layers, "all steps use the same number"
    assert [type(each) for each in reader.records].count(RequestRecord) == len(PROMPTS)


def test_observers_who_get_steps_only_get_the_same_records_of_them(checkpoint):
    reader, steps = Reader(), []
    llm = make_llm(checkpoint("mixtral"), reader, steps.append)
    llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    assert steps == [each for each in reader.records if isinstance(each, StepRecord)]
    assert all(each.experts_used for each in steps)


def test_tokens_are_the_same_with_an_observer(checkpoint):
    llms = [make_llm(checkpoint("qwen3-moe"), *observers) for observers in ([], [Reader()])]
    outputs = [llm.generate(PROMPTS, PARAMS, use_tqdm=False) for llm in llms]
    tokens = [[each.outputs[0].token_ids for each in several] for several in outputs]
    assert tokens[0] == tokens[1]


def test_nothing_is_counted_if_no_observer_reads_it(checkpoint):
    steps = []
    llm = make_llm(checkpoint("qwen3-moe"), steps.append)
    llm.generate(PROMPTS[:1], PARAMS, use_tqdm=False)
    assert {each.experts_used for each in steps} == {()}
    kinds = {type(each) for each in llm.built.model.decoder.modules() if isinstance(each, MoE)}
    assert kinds == {MoE}
    assert make_tally(llm.built.files.config, torch.device("cuda"), [Reader()]) is None


def test_a_look_at_a_token_is_not_counted(checkpoint):
    reader = Reader()
    llm = make_llm(checkpoint("qwen3-moe"), reader)
    llm.engine.add_request("seen", PROMPTS[0], PARAMS)
    llm.engine.step()
    for position in range(3):
        TokenLens(llm.config, llm.built).look(LensQuery(request_id="seen", position=position))
    assert not any(
        each.used.any()
        for each in llm.built.model.decoder.modules()
        if isinstance(each, WatchedMoE)
    )
    llm.engine.step()
    assert reader.records[-1].experts_used == (3, 3, 3)
