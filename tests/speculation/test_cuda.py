"""Guesses on the GPU's runner, in Triton's interpreter where there is no GPU."""

from array import array
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.attention.triton_backend import TritonAttention
from minimal_vllm.engine.alternating_scheduler import AlternatingScheduler
from minimal_vllm.engine.eagle import let_read
from minimal_vllm.runner.guesses import DraftSteps, EagleSteps, GuessSteps, count_together
from minimal_vllm.runner.inputs import PENDING
from minimal_vllm.runner.kernels.accept import accept
from minimal_vllm.runner.kernels.rows import JUST_SAMPLED, PlaceInputs, begin_step
from minimal_vllm.runner.step import GpuStep
from minimal_vllm.runner.table import POSITION, TOKEN, RowTable
from minimal_vllm.sampling.row import NO_TOKEN
from minimal_vllm.speculation.cuda import SpeculatingCudaRunner
from minimal_vllm.speculation.cuda_draft import CudaDraftModel
from minimal_vllm.speculation.draft_model import DraftModel
from minimal_vllm.speculation.eagle_model import EagleModel
from minimal_vllm.speculation.interface import CheckedGuesser, EaglePlaceholders, Placeholders
from minimal_vllm.speculation.pace import CostMeter, Costs
from minimal_vllm.speculation.rows import count_kept
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import Request
from tests.runner.test_cuda import LIMITS, MAX_NUM_SEQS, Repeater, complete_all, make_engines
from tests.speculation.eagle_heads import Listener, read_config, write_head, wrong_guesses
from tests.speculation.guessers import Knowing

pytestmark = pytest.mark.usefixtures("guesses_cost_nothing")

MAX_PLACES = 16
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="test_on_gpu does the same")


# ---- rows ---------------------------------------------------------------------------------------


def ints(numbers):
    return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)


def table_of(*lengths, block_size=4):
    """Return a table whose rows have so many known tokens, of which the last is not computed."""
    table, plan = RowTable(len(lengths), 8, DEVICE, num_guesses=3), Plan()
    for number, length in enumerate(lengths):
        tokens = array("i", [100 * number + place for place in range(length)])
        params = SamplingParams(temperature=0.5, max_tokens=None)
        request = Request(str(number), tokens, 2, params, number, seed=number, row=number)
        request.block_table.extend(range(8 * number, 8 * number + length // block_size + 2))
        plan.admitted.append(request)
        plan.scheduled.append(ScheduledRequest(request, length - 1, 1, num_logits=1))
    table.update(plan)
    return table


def test_guesses_have_the_places_behind_the_last_token():
    table = table_of(6, 3)
    order = ints([1, 0, 0, 0, 2, 2])
    offsets, tokens = ints([0, 0, 1, 2, 0, 0]), ints([PENDING, PENDING, 7, 8, PENDING, PENDING])
    found = begin_step(table, order, 4, PlaceInputs(offsets, tokens, ints([1, 2, 0, 1, 0, 0])))
    assert found.tokens.tolist() == [102, 5, 7, 8, 0, 0]
    assert found.positions.tolist() == [2, 5, 6, 7, 0, 0]
    assert found.slots.tolist() == [[8 * 4 + 2, 4 + 1, 4 + 2, 4 + 3, -1, -1]]
    assert found.seq_lens.tolist() == [3, 6, 0, 8, 0, 0]
    assert found.sampling.output_index.tolist()[:4] == [1, 4, 5, 6]
    assert found.sampling.seeds.tolist()[:4] == [1, 0, 0, 0]


def test_the_keys_of_a_head_are_one_place_behind():
    table = table_of(6, 3)
    order, offsets = ints([0, 0, 1, 2]), ints([0, 1, -1, 0])
    places = PlaceInputs(offsets, ints([PENDING, 7, 101, PENDING]), ints([2, 0, 1, 0]))
    usual, found = (begin_step(table, order, 4, places, behind=each) for each in (False, True))
    assert found.tokens.tolist() == usual.tokens.tolist() == [5, 7, 101, 0]
    assert found.positions.tolist() == [4, 5, 0, 0]
    assert found.slots.tolist() == [[4 + 0, 4 + 1, 8 * 4, -1]]
    assert found.own_slots.tolist() == usual.slots[0].tolist() == [4 + 1, 4 + 2, 8 * 4 + 1, -1]
    assert found.seq_lens.tolist() == [5, 0, 1, 0]
    assert found.sampling.output_index.tolist() == usual.sampling.output_index.tolist()


def test_what_a_draft_model_guesses_is_read_from_the_table():
    table = table_of(6, 3)
    before = table.block_tables[0].tolist()
    rows, offsets = ints([0, 0, 1, 0, 2]), ints([-2, 0, 0, 1, 0])
    table.note_guesses(rows, offsets, torch.tensor([50, 51, 52, 53, NO_TOKEN], device=DEVICE))
    assert table.guesses(ints([0, 1])).tolist() == [[51, 53, 0], [52, 0, 0]]
    assert table.block_tables[0].tolist() == before
    order, offsets = ints([0, 0, 0, 1, 2]), ints([-1, 0, 1, 1, 0])
    tokens = ints([4, PENDING, PENDING, PENDING, PENDING])
    found = begin_step(table, order, 4, PlaceInputs(offsets, tokens, offsets))
    assert found.tokens.tolist() == [4, 5, 51, 52, 0]
    assert found.positions.tolist() == [4, 5, 6, 3, 0]


@pytest.mark.parametrize(
    ("guesses", "sampled"),
    [
        ([], [9]),
        ([5, 6, 7], [5, 6, 7, 8]),
        ([5, 6, 7], [5, 6, 3, 8]),
        ([5, 6, 7], [4, 6, 7, 8]),
        ([5, 6, 7], [4, 4, 7, 8]),
        ([5], [NO_TOKEN, 8]),
        ([5, 6], [5, NO_TOKEN, 8]),
        ([5, 6], [5, 6, NO_TOKEN]),
        ([], [NO_TOKEN]),
    ],
)
def test_what_the_gpu_keeps_is_what_the_cpu_keeps(guesses, sampled):
    """Between two other requests, and also when it is called again."""
    table = table_of(4, 6, 3)
    order = ints([0, *[1] * len(sampled), 2, 2, 3])
    offsets = ints([0, *range(len(sampled)), 0, 1, 0])
    tokens = torch.tensor([0, 0, *guesses, 0, 41, 0], device=DEVICE)
    positions = torch.tensor([3, *range(5, 5 + len(sampled)), 2, 3, 0], device=DEVICE)
    for middle in ([5, 5, 5, 5][: len(sampled)], sampled):
        result = torch.tensor([20, *middle, 41, 42, 0], device=DEVICE)
        accept(table, order, offsets, tokens, positions, result)
    kept = count_kept(guesses, [[token] if token != NO_TOKEN else [] for token in sampled])
    known = table.cells[:, [TOKEN, POSITION]].tolist()
    assert known == [[20, 4], [sampled[max(kept, 1) - 1], 5 + max(kept, 1)], [42, 4], [0, -1]]


@pytest.mark.parametrize("num_kept", [1, 3, 4])
def test_a_head_follows_what_only_the_gpu_knows_to_be_kept(num_kept):
    """Four places, of which the first begins at position 5."""
    table = table_of(6, 3)
    order, offsets = ints([0, 0, 0, 0, 2]), ints([0, 1, 2, 3, 0])
    guesses = [5, 7, 8, 9, 0]
    sampled = [*guesses[1:num_kept], *[4, 3, 2, 1][num_kept - 1 :], 0]
    positions = torch.tensor([5, 6, 7, 8, 0], device=DEVICE)
    computed, result = (torch.tensor(each, device=DEVICE) for each in (guesses, sampled))
    accept(table, order, offsets, computed, positions, result)
    given = ints([*[JUST_SAMPLED] * 4, PENDING])
    found = begin_step(
        table, order, 4, PlaceInputs(offsets, given, ints([4, 0, 0, 0, 0])), behind=True
    )
    assert found.tokens.tolist() == sampled
    assert found.positions.tolist() == [5, 6, 7, 8, 0], "where the model has computed a state"
    assert found.slots.tolist() == [[4 + 1, 4 + 2, 4 + 3, 8, -1]]
    assert found.seq_lens.tolist() == [6, 0, 0, 0, 0]
    from_last = [place - num_kept + 1 for place in range(4)]
    assert found.offsets.tolist()[:4] == [min(each, 0) or -(each > 0) for each in from_last]
    assert table.cells[0, TOKEN] == sampled[num_kept - 1]
    table.note_guesses(order[:4], found.offsets[:4], ints([60, 61, 62, 63]))
    assert table.guesses(ints([0])).tolist() == [[59 + num_kept, 0, 0]]
    assert found.own_slots.tolist()[num_kept - 1] == 4 + 1 + num_kept


def test_places_are_divided_among_programs():
    assert count_together(torch.tensor([5, 1, 4]).numpy(), 4).tolist() == [
        *(4, 0, 0, 0, 1),
        1,
        *(4, 0, 0, 0),
    ]


# ---- the whole runner ---------------------------------------------------------------------------


def make_guessing(folder, *, captured=True, drafting=False, head=None, **options):
    """The CPU's engine without guesses, and one with guesses on the GPU's runner."""
    options = {**options, "num_guesses": 3, "max_guessed": MAX_PLACES}
    plain, engine, _ = make_engines(folder, **options)
    old, recorder = engine._runner, Repeater()
    capture = recorder if captured else None
    guess_steps = GuessSteps(old._step, capture, MAX_PLACES)
    guess_steps.record(progress=False)
    draft, guesser = None, CheckedGuesser(Knowing(), 10**6)
    if drafting:
        draft, guesser = make_draft(folder, old._step.table, capture, options), Placeholders()
    if head is not None:
        draft, guesser = make_eagle(folder, head, old._step, capture), EaglePlaceholders()
    engine._runner = SpeculatingCudaRunner(old._step, old._graphs, guess_steps, draft)
    engine.scheduler = AlternatingScheduler(
        engine.scheduler.config,
        engine.scheduler.pool,
        guesser,
        3,
        max_step_tokens=MAX_PLACES,
        in_passes=draft is not None,
        may_follow=draft is not None,
    )
    return plain, engine, recorder


def make_draft(folder, table, capture, options):
    """A draft model that is the model itself, a little disturbed."""
    _, engine, _ = make_engines(folder, **options)
    model = engine._runner._step.model
    weight = model.decoder.lm_head.weight
    weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=torch.manual_seed(0))
    draft = DraftModel(
        model, table.num_groups, engine.scheduler.pool.num_blocks, max_step_tokens=48
    )
    steps = DraftSteps(GpuStep(model, model.attention, table), capture, MAX_PLACES)
    steps.record(progress=False)
    cuda_draft = CudaDraftModel(draft, steps)
    cuda_draft.warm_up()
    return cuda_draft


def make_eagle(folder, head, step, capture):
    """A head of the model."""
    config = {"method": "eagle3", "model": str(head), "num_speculative_tokens": 3}
    options = {"num_gpu_blocks_override": 40, "speculative_config": config}
    plain = LLM(str(folder), device="cpu", attention_backend="reference", **LIMITS, **options)
    network = plain.engine._runner._draft.head
    model = replace(
        plain.engine._runner._draft.model,
        attention=TritonAttention(
            windows=frozenset([None]),
            num_heads=network.config.num_heads,
            num_kv_heads=network.config.num_kv_heads,
            head_dim=network.config.head_dim,
            max_num_seqs=MAX_NUM_SEQS,
            num_sms=4,
            device=DEVICE,
            dtype=torch.float32,
            plain=True,
            max_guessed=MAX_PLACES,
        ),
    )
    table = step.table
    let_read(network, step.model.decoder, step.model.groups, 40 * model.block_size)
    draft = EagleModel(network, model, table.num_groups, 40, max_step_tokens=48)
    own_step = GpuStep(model, model.attention, table)
    steps = EagleSteps(network, own_step, capture, MAX_PLACES)
    steps.record(progress=False)
    cuda_draft = CudaDraftModel(draft, steps)
    cuda_draft.warm_up()
    return cuda_draft


def facts(outputs):
    return [
        (each.token_ids, each.finish_reason, each.logprobs and [set(one) for one in each.logprobs])
        for output in outputs
        for each in output.outputs
    ]


def learn(prompts, outputs):
    Knowing.outputs = {
        tuple(prompt): [each.token_ids for each in output.outputs]
        for prompt, output in zip(prompts, outputs, strict=True)
    }


PROMPTS = [[(7 * i + 3 * n) % 250 for i in range(n)] for n in (5, 18, 1)]
RANDOM = {"temperature": 0.9, "seed": 5, "max_tokens": 8, "ignore_eos": True}
PARAMS = {
    "greedy": {"temperature": 0, "max_tokens": 8, "ignore_eos": True},
    "random": {**RANDOM, "top_k": 40, "min_p": 0.01},
    "penalized": {**RANDOM, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "logprobs": 2},
    "minimum": {**RANDOM, "min_tokens": 5, "stop_token_ids": list(range(50, 200)), "logprobs": 0},
}


@without_gpu
@pytest.mark.parametrize(
    ("family", "name", "options"),
    [
        *(("qwen3", name, {}) for name in PARAMS),
        ("llama", "greedy", {"captured": False, "graphs": False}),
        ("mistral-window", "greedy", {}),
        ("qwen3-bias-layer-types", "greedy", {}),
        ("qwen3", "random", {"drafting": True}),
        ("qwen3", "penalized", {"drafting": True}),
        ("llama", "greedy", {"drafting": True, "captured": False}),
    ],
)
def test_the_tokens_are_those_without_guesses(checkpoint, family, name, options):
    plain, engine, recorder = make_guessing(checkpoint(family), **options)
    params = SamplingParams(**PARAMS[name])
    expected = complete_all(plain, PROMPTS, params)
    learn(PROMPTS, expected)
    kept, rejected = [], []

    def watch(record):
        kept.extend(len(each.sampled_tokens) for each in record.scheduled)
        rejected.extend(each.num_rejected for each in record.scheduled)

    engine._reporter._observers = [watch]
    assert facts(complete_all(engine, PROMPTS, params)) == facts(expected)
    assert max(kept) > 1
    assert max(rejected) > 0
    assert bool(recorder.replays) is options.get("captured", True)


def all_of_them(_plan, _entries, guesses):
    """The number of guesses of each request, whether they pay or not."""
    return [len(each) for each in guesses]


def let_wait(engine, monkeypatch):
    """Let each step wait until the CPU knows how many guesses of the step before hold."""
    monkeypatch.setattr(engine.scheduler, "_may_go_on", lambda: False)


@without_gpu
@pytest.mark.parametrize(
    ("family", "captured", "waits"),
    [
        ("llama", True, False),
        ("llama", True, True),
        ("llama", False, False),
        ("gemma3", True, False),
    ],
)
def test_a_head_guesses_what_a_plain_one_guesses(
    checkpoint, tmp_path, monkeypatch, family, captured, waits
):
    folder = checkpoint(family)
    head = write_head(tmp_path / "head", target=read_config(folder), embedding=True)
    plain, engine, _ = make_guessing(folder, head=head, captured=captured)
    if waits:
        let_wait(engine, monkeypatch)
    monkeypatch.setattr(engine.scheduler, "count_guesses", all_of_them)
    listener = Listener(monkeypatch)
    params = SamplingParams(**PARAMS["greedy"])
    assert facts(complete_all(engine, PROMPTS, params)) == facts(
        complete_all(plain, PROMPTS, params)
    )
    assert listener.followed is not waits
    assert len(listener.guesses) > 8
    assert wrong_guesses(folder, head, listener.guesses) == []


@without_gpu
def test_a_head_guesses_what_a_plain_one_guesses_however_many_guesses_held(
    checkpoint, tmp_path, monkeypatch
):
    """What it guesses right or wrong is given, but for the first guess behind every third token."""
    folder = checkpoint("llama")
    head = write_head(tmp_path / "head", target=read_config(folder), embedding=True)
    plain, engine, _ = make_guessing(folder, head=head)
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    expected = complete_all(plain, PROMPTS, params, arrive_every=0)
    texts = [
        [*prompt, *output.outputs[0].token_ids, *[0] * 5]
        for prompt, output in zip(PROMPTS, expected, strict=True)
    ]
    finish = EagleSteps.finish

    def finish_knowing(steps, order, located, hidden, tokens):
        for index, row in enumerate(order.tolist()):
            last = located.positions[index].item() + 1
            if row < len(texts) and last % 3:
                tokens[index] = texts[row][last + 1] if last % 5 else 0
        finish(steps, order, located, hidden, tokens)

    monkeypatch.setattr(EagleSteps, "finish", finish_knowing)
    monkeypatch.setattr(engine.scheduler, "count_guesses", all_of_them)
    listener, kept = Listener(monkeypatch), set()
    engine._reporter._observers = [
        lambda record: kept.update(len(each.sampled_tokens) for each in record.scheduled)
    ]
    assert facts(complete_all(engine, PROMPTS, params, arrive_every=0)) == facts(expected)
    assert listener.followed
    assert {1, 2, 3} <= kept
    own = [(known, guesses[:1]) for known, guesses in listener.guesses if len(known) % 3 == 1]
    assert len(own) > 5
    assert wrong_guesses(folder, head, own) == []


@without_gpu
def test_where_no_guess_pays_steps_are_launched_ahead(checkpoint, monkeypatch):
    monkeypatch.setattr(CostMeter, "_fit", lambda _: Costs(0.0, 1.0))
    plain, engine, _ = make_guessing(checkpoint("qwen3"))
    engine.scheduler.meter.costs = Costs(0.0, 1.0)
    params = SamplingParams(**PARAMS["greedy"])
    expected = complete_all(plain, PROMPTS, params, arrive_every=0)
    learn(PROMPTS, expected)
    ahead = []
    schedule = engine.scheduler.schedule
    monkeypatch.setattr(
        engine.scheduler, "schedule", lambda: (ahead.append(len(engine._in_flight)), schedule())[1]
    )
    assert facts(complete_all(engine, PROMPTS, params, arrive_every=0)) == facts(expected)
    assert ahead.count(1) > ahead.count(0)


@without_gpu
def test_a_draft_model_guesses_the_same_while_the_gpu_decides_how_many_hold(
    checkpoint, monkeypatch
):
    """Whether a step follows guesses in flight or waits for them, all steps keep the same."""
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    histories = []
    for waits in (True, False):
        _, engine, _ = make_guessing(checkpoint("qwen3"), drafting=True)
        if waits:
            let_wait(engine, monkeypatch)
        monkeypatch.setattr(engine.scheduler, "count_guesses", all_of_them)
        steps, followed = {}, []

        def watch(record, steps=steps):
            for each in record.scheduled:
                steps.setdefault(each.request_id, []).append(each.sampled_tokens)

        def follow(schedule=engine.scheduler.schedule, followed=followed):
            plan = schedule()
            followed += [entry.follows_guesses for entry in plan.scheduled]
            return plan

        engine._reporter._observers = [watch]
        monkeypatch.setattr(engine.scheduler, "schedule", follow)
        complete_all(engine, PROMPTS, params, arrive_every=0)
        assert any(followed) is not waits
        histories.append({each: kept[:6] for each, kept in steps.items()})
    assert histories[0] == histories[1]
    lengths = {len(kept) for history in histories for each in history.values() for kept in each}
    assert {1, 4} <= lengths, "all guesses of a step must hold now and then, and none"


@without_gpu
def test_a_gpu_that_keeps_a_wrong_guess_would_be_noticed(checkpoint, monkeypatch):
    plain, engine, _ = make_guessing(checkpoint("qwen3"))
    params = SamplingParams(**PARAMS["greedy"])
    expected = complete_all(plain, PROMPTS, params)
    learn(PROMPTS, expected)
    monkeypatch.setattr(SpeculatingCudaRunner, "launch", keeping_one_more(monkeypatch))
    assert facts(complete_all(engine, PROMPTS, params)) != facts(expected)


def keeping_one_more(monkeypatch):
    """Launch with positions in the table that are one too high after a step with guesses."""
    launch = SpeculatingCudaRunner.launch

    def launch_wrongly(self, plan):
        flight = launch(self, plan)
        if any(entry.guesses for entry in plan.scheduled):
            rows = [entry.request.row for entry in plan.scheduled]
            self._step.table.cells[rows, POSITION] += 1
        return flight

    return launch_wrongly
