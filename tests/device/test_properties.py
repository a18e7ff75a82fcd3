"""What the choice of a kernel is told of a device."""

import pytest
import torch

from minimal_vllm.device.properties import is_hopper, is_hopper_or_later, num_sms


def test_a_cpu_makes_the_choices_of_an_h200_but_is_no_hopper():
    cpu = torch.device("cpu")
    assert num_sms(cpu) == 132
    assert not is_hopper(cpu)
    assert not is_hopper_or_later(cpu)


@pytest.mark.gpu
def test_a_gpu_has_the_sms_that_cuda_reports():
    gpu = torch.device("cuda")
    assert num_sms(gpu) == torch.cuda.get_device_properties(gpu).multi_processor_count


@pytest.mark.parametrize(
    ("capability", "is_one", "is_or_is_later"),
    [((8, 9), False, False), ((9, 0), True, True), ((10, 0), False, True), ((12, 1), False, True)],
)
def test_only_compute_capability_9_is_hopper(capability, is_one, is_or_is_later, monkeypatch):
    monkeypatch.setattr("minimal_vllm.device.properties._capability", lambda _: capability)
    gpu = torch.device("cuda", 0)
    assert is_hopper(gpu) == is_one
    assert is_hopper_or_later(gpu) == is_or_is_later
