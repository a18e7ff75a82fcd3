from array import array

from hypothesis import given
from hypothesis import strategies as st

from minimal_vllm_lab.sim.job import Job
from minimal_vllm_lab.sim.load import StepLoad, load_of_decodes, load_of_plan, load_of_record
from tests.lab.sim.simulated import COSTS, make_jobs, make_replica, run


class Entry:
    def __init__(self, start, num_new, num_logits):
        self.start, self.num_new, self.num_logits = start, num_new, num_logits


class Plan:
    def __init__(self, scheduled):
        self.scheduled = scheduled


entries = st.lists(
    st.builds(Entry, st.integers(0, 50), st.integers(1, 20), st.integers(0, 3)), max_size=5
)


@given(entries)
def test_a_load_counts_each_pair_of_tokens_that_attend(scheduled):
    load = load_of_plan(Plan(scheduled))
    computed = [list(range(each.start, each.start + each.num_new)) for each in scheduled]
    assert load == StepLoad(
        num_requests=len(scheduled),
        num_tokens=sum(map(len, computed)),
        num_samples=sum(each.num_logits for each in scheduled),
        kv_tokens=sum(positions[-1] + 1 for positions in computed),
        attended=sum(position + 1 for positions in computed for position in positions),
    )


@given(entries, st.lists(st.integers(0, 50), max_size=5))
def test_sleepers_count_as_decodes(scheduled, starts):
    decodes = [Entry(start, 1, 1) for start in starts]
    context = sum(start + 1 for start in starts)
    whole = load_of_plan(Plan([*scheduled, *decodes]))
    assert load_of_plan(Plan(scheduled), len(starts), context) == whole
    assert load_of_decodes(len(starts), context) == load_of_plan(Plan(decodes))


class Noting:
    """Cost model that remembers the loads it was asked about."""

    def __init__(self):
        self.loads = []

    def seconds(self, load):
        self.loads.append(load)
        return COSTS.seconds(load)


def test_a_record_gives_the_load_that_the_cost_model_was_asked_about():
    costs, records = Noting(), []
    run(make_jobs(seed=0), [make_replica(observers=[records.append], costs=costs)])
    predicted = [each._replace(admitted=0) for each in costs.loads]  # not part of a record
    assert [load_of_record(record) for record in records] == predicted
    assert len(predicted) > 100


def test_pure_decode_steps_read_shared_tokens_once_with_cascade_attention():
    head = array("i", range(40))  # two full shared blocks, and part of a block of its own
    jobs = [Job(number * 1e-4, head + array("i", [99 + number]), 9) for number in range(3)]
    loads = []
    for cascade in (False, True):
        costs = Noting()
        run(iter(jobs), [make_replica(costs=costs, cascade=cascade)])
        loads.append(costs.loads)
    differences = []
    for plain, shared in zip(*loads, strict=True):
        assert shared == plain.with_shared(shared.shared)
        differences.append(plain.kv_tokens - shared.kv_tokens)
    # The first one's prompt; its first decode, beside the others' prompts; seven decodes of all
    # three, after which the first has ended; one of the others.
    assert differences == [0, 0, *[2 * 32] * 7, 32]


def test_prompts_are_admitted_during_a_step_unless_none_runs():
    costs = Noting()
    jobs = [Job(at, array("i", range(length)), 3) for at, length in ((0, 9), (1e-4, 8), (5, 7))]
    run(iter(jobs), [make_replica(costs=costs)])
    assert [each.admitted for each in costs.loads] == [9, 0, 0, 0, 7, 0, 0]
