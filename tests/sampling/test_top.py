import pytest
import torch

from minimal_vllm.sampling.top import GROUP, top_of_rows


@pytest.mark.parametrize(("size", "count"), [(4096, 3), (4099, 16), (1000, 3), (1000, 4), (300, 0)])
def test_the_largest_of_each_row_are_found_in_groups_as_they_are_without(size, count):
    numbers = torch.randn(5, size, generator=torch.Generator().manual_seed(size + count))
    numbers[1, 7] = numbers[1, -1] = 9.0
    numbers[2] = -torch.inf
    numbers[3, : 2 * GROUP] += 9.0  # all of the largest are in two groups
    values, index = top_of_rows(numbers, count)
    assert values.equal(numbers.topk(count).values)
    assert numbers.gather(1, index).equal(values)
    assert all(len(set(row)) == count for row in index.tolist())
