import pytest

from benchmarks import memory_and_startup
from benchmarks.memory_and_startup import LoadCase, LoadedMemory


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    case = LoadCase("bfloat16", "bfloat16", sharded=True, num_layers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_and_startup, "load_cases", lambda layers: [case])
        patch.setattr(memory_and_startup, "SHARD_SIZE", "1MB")
        return memory_and_startup.main(["--blocks=4096", "--repeats=1", f"--results={folder}"])


def test_weights_and_pool_have_the_sizes_that_the_shape_says(results):
    (measured,) = results["memory"].values()
    embedding, per_layer = 49152 * 576, 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576
    assert measured["weights"] == 2 * (embedding + per_layer + 576)
    assert measured["pool"] == 2 * (2 * 4096 * 16 * 3 * 64)


def test_the_pool_is_in_the_peak_only_when_it_is_filled(results):
    (measured,) = results["memory"].values()
    # Packing the weights may once have taken as much as the pool takes later.
    assert measured["weights"] <= measured["peak_of_loading"] <= measured["peak_with_full_pool"]
    assert measured["weights"] + measured["pool"] <= measured["peak_with_full_pool"]


def test_ratios_are_of_the_weights_and_of_both():
    memory = LoadedMemory(weights=100, pool=50, peak_of_loading=110, peak_with_full_pool=180)
    assert (memory.loading_ratio, memory.full_ratio) == (1.1, 1.2)


def test_each_command_and_each_part_of_the_start_is_timed(results):
    assert [len(times) for times in results["startup"].values()] == [1, 1]
    (parts,) = results["parts"]
    assert list(parts) == [
        "import torch",
        "other imports",
        "config and tokenizer",
        "weights",
        "rest of the engine",
        "first step",
    ]
    assert all(seconds > 0 for seconds in parts.values())


def test_the_peak_is_not_inherited_from_the_process_that_starts_us():
    block = bytearray(200_000_000)
    assert memory_and_startup.peak_memory() > len(block)
    assert memory_and_startup._call("peak_memory()") < len(block) / 2
