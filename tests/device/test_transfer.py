import numpy as np
import pytest
import torch

from minimal_vllm.device.transfer import COPIES, Fetch, Sender, send

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_sent_again_and_again_arrives_in_order(device):
    memory = send(np.zeros(1000, dtype=np.int32), torch.device(device)).clone()
    sender, numbers, sums = Sender(memory), np.zeros(1000, dtype=np.int32), []
    for value in range(3 * COPIES):
        numbers[:] = value
        sender.send(numbers)
        numbers[:] = -1  # the array is the caller's again
        sums.append(memory.sum())
    assert [int(each) for each in sums] == [1000 * value for value in range(3 * COPIES)]


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_fetched_are_the_values_of_then(device):
    memory, fetched = torch.zeros(1000, dtype=torch.int64, device=device), []
    for value in range(100):
        memory.fill_(value)
        fetched.append(Fetch(memory))
        memory.fill_(-1)  # overwritten while the copy may still be in progress
    assert [set(each.wait()) for each in fetched] == [{value} for value in range(100)]
