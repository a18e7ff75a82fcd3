from array import array

from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.batch import build_batch
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import Request


def entry(name, num_tokens, start, num_new, block_table, num_logits=1):
    """A request whose token at position p is 100 * name + p."""
    tokens = array("i", [100 * name + position for position in range(num_tokens)])
    request = Request(str(name), tokens, 1, SamplingParams(), name)
    request.block_table.extend(block_table)
    return ScheduledRequest(request, start, num_new, num_logits)


def test_the_drawing_in_batchs_documentation_is_right():
    plan = Plan([entry(1, 8, 4, 4, [5, 2]), entry(2, 10, 9, 1, [0, 7, 3]), entry(3, 3, 2, 1, [6])])
    batch = build_batch(plan, block_size=4)
    assert batch.input_ids.tolist() == [104, 105, 106, 107, 209, 302]
    assert batch.positions.tolist() == [4, 5, 6, 7, 9, 2]
    assert batch.query_starts.tolist() == [0, 4, 5, 6]
    assert batch.seq_lens.tolist() == [8, 10, 3]
    assert batch.slot_mapping.tolist() == [8, 9, 10, 11, 3 * 4 + 1, 6 * 4 + 2]
    assert batch.block_tables.tolist() == [[5, 2, 0], [0, 7, 3], [6, 0, 0]]
    assert batch.logit_indices.tolist() == [3, 4, 5]
    assert [request.request_id for request in batch.sampling] == ["1", "2", "3"]


def test_chunks_that_are_not_the_last_give_no_logits():
    plan = Plan([entry(1, 9, 0, 6, [4, 1], num_logits=0), entry(2, 2, 0, 2, [0])])
    batch = build_batch(plan, block_size=4)
    assert batch.logit_indices.tolist() == [7]
    assert batch.slot_mapping.tolist() == [16, 17, 18, 19, 4, 5, 0, 1]
    assert [request.request_id for request in batch.sampling] == ["2"]


def test_a_batch_that_samples_nothing_has_no_logits():
    batch = build_batch(Plan([entry(1, 9, 0, 4, [0], num_logits=0)]), block_size=4)
    assert batch.logit_indices.tolist() == batch.sampling == []


def test_each_request_gets_the_logits_of_its_last_tokens_as_many_as_the_plan_says():
    plan = Plan(
        [
            entry(1, 9, 0, 6, [4, 1], num_logits=0),
            entry(2, 3, 2, 3, [0, 5], num_logits=3),
            entry(3, 2, 0, 2, [6], num_logits=1),
            entry(4, 5, 4, 2, [7, 8], num_logits=2),
        ]
    )
    batch = build_batch(plan, block_size=4)
    assert batch.logit_indices.tolist() == [6, 7, 8, 10, 11, 12]
    assert batch.input_ids.tolist()[6:9] == [202, 0, 0]  # the guesses are not in the list
    assert [request.request_id for request in batch.sampling] == ["2", "3", "4"]
