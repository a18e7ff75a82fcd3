"""What a step finds in the GPU's table of requests; without a GPU, in Triton's interpreter."""

from array import array
from math import inf, log

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from minimal_vllm.cache.layer_groups import NO_BLOCK
from minimal_vllm.runner.kernels.rows import begin_step, end_step, locate_tokens
from minimal_vllm.runner.table import RowTable
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.plan import Plan, ScheduledRequest
from minimal_vllm.step.request import Request

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ASKED = [
    SamplingParams(temperature=0.6, top_p=0.95, top_k=20, max_tokens=None),
    SamplingParams(temperature=1.0, min_p=0.05, top_k=2**40, max_tokens=None),
    SamplingParams(temperature=1e-6, top_p=1 / 3, max_tokens=None),  # as good as greedy
]
SEEDS = [2**64 - 3, 7, 2**33 + 1]


def admitted_rows():
    table = RowTable(num_rows=len(ASKED), num_blocks=4, device=DEVICE)
    plan = Plan()
    for number, (params, seed) in enumerate(zip(ASKED, SEEDS, strict=True)):
        tokens = array("i", [10 * number + place for place in range(6)])
        request = Request(str(number), tokens, 5, params, number, seed=seed, row=number)
        request.block_table.extend([number, number + 3])
        plan.admitted.append(request)
        plan.scheduled.append(ScheduledRequest(request, 5, 1, num_logits=1))
    table.update(plan)
    return table


def step_of(table, rows, size):
    padding = [table.padding_row] * (size - len(rows))
    order = torch.tensor(rows + padding, dtype=torch.int32, device=DEVICE)
    return order, begin_step(table, order, block_size=4)


def test_a_step_finds_what_its_requests_ask_for():
    known = step_of(admitted_rows(), [2, 0, 1], 4)[1].sampling
    assert known.temperature.tolist() == [0.0, np.float32(0.6), 1.0, 0.0]
    assert [seed % 2**64 for seed in known.seeds.tolist()[:3]] == [SEEDS[2], SEEDS[0], SEEDS[1]]
    assert known.output_index.tolist()[:3] == [1, 1, 1]
    assert known.top_k.tolist()[:3] == [0, 20, 2**31 - 1]
    assert known.top_p.tolist()[:3] == [1 / 3, 0.95, 1.0]
    assert known.min_p.tolist()[:3] == [-inf, -inf, np.float32(log(0.05))]


def test_the_next_step_goes_on_where_the_last_one_ended():
    table = admitted_rows()
    order, first = step_of(table, [1, 0], 4)
    assert first.tokens.tolist() == [15, 5, 0, 0]
    assert first.positions.tolist() == [5, 5, 0, 0]
    assert first.slots.tolist() == [[4 * 4 + 1, 3 * 4 + 1, -1, -1]]
    assert first.seq_lens.tolist() == [6, 6, 0, 0]
    end_step(table, order, torch.tensor([77, -1, 5, 5], device=DEVICE))
    _, second = step_of(table, [1, 0], 4)
    assert second.tokens.tolist() == [77, 0, 0, 0]
    assert second.positions.tolist() == [6, 6, 0, 0]
    assert second.sampling.output_index.tolist()[:2] == [2, 2]


def test_each_group_of_layers_has_a_block_table_and_slots_of_its_own():
    table = RowTable(num_rows=1, num_blocks=4, device=DEVICE, num_groups=2)
    request = Request("a", array("i", range(6)), 5, ASKED[0], 0, row=0)
    request.block_table.extend([7, NO_BLOCK, 2, 9])  # tokens 0-3 and 4-7, for each group
    entry = ScheduledRequest(request, 5, 1, num_logits=1)
    table.update(Plan(scheduled=[entry], admitted=[request]))
    assert [each[0].tolist() for each in table.block_tables] == [[7, 2, 0, 0], [-1, 9, 0, 0]]
    assert step_of(table, [0], 2)[1].slots.tolist() == [[2 * 4 + 1, -1], [9 * 4 + 1, -1]]
    request.block_table.extend([5, 6])
    table.update(Plan(scheduled=[ScheduledRequest(request, 8, 1, 1, new_blocks=[5, 6])]))
    assert [each[0].tolist() for each in table.block_tables] == [[7, 2, 5, 0], [-1, 9, 6, 0]]
    where = [torch.tensor(each, dtype=torch.int32, device=DEVICE) for each in ([3, 4], [5, 8])]
    rows = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    located = locate_tokens(table, *where, rows, block_size=4)
    assert located.slots.tolist() == [[2 * 4 + 1, 5 * 4], [9 * 4 + 1, 6 * 4]]
