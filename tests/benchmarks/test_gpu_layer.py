"""Steps are profiled and their kernels find their layers, in Triton's interpreter without a GPU.

There, PyTorch's operations take the place of kernels: each outermost one is made a launch and a
kernel. So the marks, the order of kernels and the tables are those of the GPU's runner.
"""

import gzip
import json
from shutil import copytree
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("triton")

from benchmarks import gpu_layer
from benchmarks.gpu_layer import FACTS, LAUNCHED, SERVED, main, mark, read_profile, record
from benchmarks.gpu_workloads import build
from benchmarks.layer_marks import gpu_runner, launched_one_by_one
from benchmarks.layer_trace import read_steps
from tests.benchmarks.test_gpu_workloads import TINY
from tests.runner.test_cuda import make_engines

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted here")


def llm_of(engine):
    """What ``record`` reads of an LLM."""
    built = SimpleNamespace(model=engine._runner._step.model)
    return SimpleNamespace(
        engine=engine, built=built, config=SimpleNamespace(tensor_parallel_size=1)
    )


def make_kernels_of_operations(path, *, replayed):
    """Change a profile of the CPU to what a GPU's would be.

    Args:
        path: the profile.
        replayed: whether each step is one graph, so that its launches are in no layer.
    """
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    marks = [each for each in events if each.get("cat") == "user_annotation"]
    operations = [each for each in events if each.get("cat") == "cpu_op"]
    changed, end = list(marks), 0
    for number, operation in enumerate(sorted(operations, key=lambda each: each["ts"])):
        if operation["ts"] < end:
            continue
        end = operation["ts"] + operation["dur"]
        args = {"correlation": number, "stream": 7}
        launch = {**operation, "cat": "cuda_runtime", "name": "cudaLaunchKernel", "args": args}
        changed += [launch, {**operation, "cat": "kernel", "args": args}]
    if replayed:
        changed = [each for each in changed if not each["name"].startswith(("layer", "part"))]
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": changed}).encode()))


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """The interpreter takes a second for a step."""
    with pytest.MonkeyPatch.context() as patch:
        for name, count in (("WARM", 0), ("TIMED", 1), ("PROFILED", 2), ("ONE_BY_ONE", 1)):
            patch.setattr(gpu_layer, name, count)
        yield


@pytest.fixture(scope="module")
def recorded(few_steps, checkpoint, tmp_path_factory):
    _, engine, _ = make_engines(checkpoint("qwen3"))
    folder = tmp_path_factory.mktemp("recorded")
    llm = llm_of(engine)
    record(llm, mark(llm), [([1, 2, 3], 9), ([4, 5], 9)], "tiny", folder)
    return folder


@pytest.fixture
def profile_folder(recorded, tmp_path):
    return copytree(recorded, tmp_path / "profile")


@interpreted
def test_replayed_kernels_get_the_parts_of_the_launched_ones(profile_folder):
    make_kernels_of_operations(profile_folder / SERVED, replayed=True)
    make_kernels_of_operations(profile_folder / LAUNCHED, replayed=False)
    profile = read_profile(profile_folder)
    assert profile.notes == []
    assert len(profile.steps) == 1  # the profiler starts in the first one
    for step in profile.steps:
        for layer in range(len(profile.facts.kinds)):
            parts = {each.part for each in step if each.layer == layer}
            assert parts >= {"norm before attention", "qkv product", "o product", "down"}
        assert {each.part for each in step if each.layer is None} >= {"front", "head", "last norm"}
    result = CliRunner().invoke(main, ["--read", str(profile_folder)], catch_exceptions=False)
    assert "A layer (full attention), median of" in result.output
    assert "CAUTION" not in result.output
    assert "2 requests, 2 tokens" in result.output


@interpreted
def test_a_graph_that_replays_other_kernels_is_noticed(profile_folder):
    make_kernels_of_operations(profile_folder / SERVED, replayed=True)
    make_kernels_of_operations(profile_folder / LAUNCHED, replayed=False)
    path = profile_folder / LAUNCHED
    profile = json.loads(gzip.decompress(path.read_bytes()))
    kernels = [each for each in profile["traceEvents"] if each.get("cat") == "kernel"]
    kernels[-5]["name"] = "another"
    path.write_bytes(gzip.compress(json.dumps(profile).encode()))
    result = CliRunner().invoke(main, ["--read", str(profile_folder)], catch_exceptions=False)
    assert "CAUTION: the graph replays" in result.output
    assert "instead of 'another'" in result.output


@interpreted
def test_a_profile_without_kernels_says_what_it_has(profile_folder):
    with pytest.raises(ValueError, match=r"the profile has .*'user_annotation': .* calls {}"):
        read_profile(profile_folder)


@interpreted
def test_steps_launched_one_by_one_are_the_last_to_be(checkpoint):
    _, engine, recorder = make_engines(checkpoint("qwen3"))
    runner = engine._runner
    graphs = dict(runner._graphs._bodies)
    with launched_one_by_one(runner):
        engine.add_request("0", [1, 2, 3], gpu_layer.SamplingParams(max_tokens=4))
        while engine.has_unfinished_requests:
            engine.step()
    assert not recorder.replays
    assert runner._graphs._bodies == graphs


@interpreted
def test_prompts_are_profiled_where_outputs_have_one_token(checkpoint, tmp_path):
    _, engine, _ = make_engines(checkpoint("qwen3"))
    llm = llm_of(engine)
    record(llm, mark(llm), [([1 + n, 2], 1) for n in range(30)], "tiny", tmp_path)
    facts = json.loads((tmp_path / FACTS).read_text())
    assert facts["title"] == "tiny: 6 requests, 12 tokens; floors of an H200"


@interpreted
def test_too_short_a_workload_is_refused(checkpoint, tmp_path):
    _, engine, _ = make_engines(checkpoint("qwen3"))
    llm = llm_of(engine)
    with pytest.raises(ValueError, match="too few steps"):
        record(llm, mark(llm), [([1, 2], 3)], "tiny", tmp_path)


def test_another_runner_is_refused():
    llm = build(TINY, {"num_gpu_blocks_override": 10, "max_model_len": 64}, "cpu")
    with pytest.raises(TypeError, match="PlainRunner"):
        gpu_runner(llm)


@pytest.mark.gpu
def test_every_kernel_of_a_replayed_step_is_known(tmp_path):
    llm = build(TINY, {"num_gpu_blocks_override": 1000, "max_model_len": 1024})
    record(llm, mark(llm), [([1, 2, 3], 40), ([4], 40)], "tiny", tmp_path)
    profile = read_profile(tmp_path)
    assert all("Memcpy DtoH" in note for note in profile.notes)  # copied beside the next step
    launched = read_steps(gpu_layer._events(tmp_path / LAUNCHED)).steps[-1]
    assert [each.name for each in launched] == [each.name for each in profile.steps[-1]]
    parts = {each.part for each in profile.steps[-1] if each.layer == 0}
    assert parts >= {"qkv product", "rotate and store", "attention", "o product", "down"}
