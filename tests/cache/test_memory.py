from types import SimpleNamespace

import pytest
import torch

from minimal_vllm.cache import memory
from minimal_vllm.cache.memory import (
    DeviceMemory,
    gpu_free,
    measure_memory,
    out_of_memory_as_value_error,
)

GIB = 2**30


@pytest.mark.parametrize(
    ("utilization", "used", "free", "activations", "budget"),
    [
        (0.5, 10, 90, 5, 35),  # half of 100, less what is used and what a step takes
        (1.0, 10, 90, 5, 85),
        (0.9, 10, 20, 5, 15),  # others use 70: only 20 can be had
        (0.1, 10, 90, 0, 0),
        (0.1, 30, 70, 5, -25),
    ],
)
def test_the_budget_is_the_share_less_what_is_used(utilization, used, free, activations, budget):
    device = DeviceMemory("cpu", total=100, free=free, used_by_process=used)
    assert device.kv_budget(utilization, activations) == budget


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """64 GiB, 40 of them free; this process uses 3. Containers' limits are read from tmp_path."""
    ram = SimpleNamespace(total=64 * GIB, available=40 * GIB)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=3 * GIB))
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: ram)
    monkeypatch.setattr(memory.psutil, "Process", lambda: process)
    paths = (tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes")
    monkeypatch.setattr(memory, "CGROUP_LIMITS", tuple(map(str, paths)))
    return paths


@pytest.mark.parametrize(
    ("version", "limit", "total", "free"),
    [
        (0, "max\n", 64, 40),
        (0, f"{8 * GIB}\n", 8, 5),
        (1, f"{8 * GIB}\n", 8, 5),
        (1, "9223372036854771712\n", 64, 40),
        (0, f"{50 * GIB}", 50, 40),
    ],
)
def test_a_containers_limit_is_the_machines_size(machine, version, limit, total, free):
    machine[version].write_text(limit)
    expected = DeviceMemory("cpu", total * GIB, free * GIB, 3 * GIB)
    assert measure_memory(torch.device("cpu")) == expected


def test_without_a_container_all_ram_counts(machine):
    expected = DeviceMemory("cpu", 64 * GIB, 40 * GIB, 3 * GIB)
    assert measure_memory(torch.device("cpu")) == expected


def test_a_cpu_has_no_gpu_memory():
    assert gpu_free(torch.device("cpu")) == 0


def test_of_a_gpu_what_went_since_the_start_is_this_processs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (50, 100))
    gpu = torch.device("cuda")
    assert measure_memory(gpu, gpu_free_at_start=80) == DeviceMemory("cuda", 100, 50, 30)
    assert measure_memory(gpu, gpu_free_at_start=40).used_by_process == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore lines."),
        MemoryError("Unable to allocate 14.6 PiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_running_out_of_memory_is_an_error_of_one_sentence(error):
    with (
        pytest.raises(ValueError, match=r"not enough memory .*allocate.*: lower") as caught,
        out_of_memory_as_value_error(),
    ):
        raise error
    assert "\n" not in str(caught.value)


def test_another_error_is_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="no such kernel"), out_of_memory_as_value_error():
        raise RuntimeError("no such kernel")
