import pytest
import torch
from checkpoints import FAMILIES
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader
from gguf.quants import dequantize
from gguf_files import write_gguf

from benchmarks.contenders import Job
from benchmarks.cpu_vs_llama_cpp import (
    OurEngine,
    Workload,
    compare,
    convert,
    make_workloads,
    measure,
)


class Constant:
    """Contender that takes a second per token, and always writes the same one."""

    def __init__(self, name, token):
        self.name, self.token = name, token

    def complete(self, jobs):
        return float(max(job.num_tokens for job in jobs)), [
            [self.token] * job.num_tokens for job in jobs
        ]


def test_the_time_of_a_step_is_without_the_prompt():
    step = next(each for each in make_workloads(4) if each.name == "a step of 2")
    assert [job.num_tokens for job in step.jobs] == [5, 5]
    assert measure(Constant("one", 1), step)[0] == (5 - 1) / 4


def test_outputs_are_compared_with_the_first_contender_s():
    workloads = [Workload("two", [Job([1], 3), Job([2], 3)])]
    contenders = [Constant("ours", 1), Constant("same", 1), Constant("other", 2)]
    results = compare(contenders, workloads, repeats=2)
    assert results["two"]["same"] == {"ours": 2, "same": 2, "other": 0}
    assert results["two"]["seconds"]["other"] == [3.0, 3.0]


@pytest.mark.parametrize("type_name", ["F32", "BF16", "Q8_0"])
def test_a_converted_file_has_the_same_weights_in_another_type(tmp_path, type_name):
    source, target = tmp_path / "model.gguf", tmp_path / "converted.gguf"
    weights = write_gguf(source, FAMILIES["llama"], Type.F32)
    convert(source, target, type_name)
    found = {tensor.name: tensor for tensor in GGUFReader(target).tensors}
    down = found["blk.0.ffn_down.weight"]
    assert down.tensor_type == Type[type_name]
    expected = weights["model.layers.0.mlp.down_proj.weight"].bfloat16().float()
    numbers = torch.from_numpy(dequantize(down.data, down.tensor_type).copy())
    torch.testing.assert_close(numbers, expected, rtol=0, atol=float(expected.abs().max()) / 127)
    if type_name != "Q8_0":
        assert torch.equal(numbers, expected)
    seconds, outputs = OurEngine("ours", target).complete([Job([5, 6, 7], 4)])
    assert seconds > 0
    assert len(outputs[0]) == 4
