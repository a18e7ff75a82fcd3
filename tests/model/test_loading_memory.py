"""What loading takes beside the weights is a window of a file, however large the model is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import FAMILIES, QUANTIZED, tensor_shapes, write_json
from safetensors.torch import save_file

from minimal_vllm.model.safetensors_file import WINDOW_BYTES

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only on Linux")
CONFIGS = {
    "many small tensors": FAMILIES["qwen3-moe"]
    | {"hidden_size": 256, "moe_intermediate_size": 512, "num_experts": 32},
    "a few large ones": FAMILIES["gpt-oss"]
    | {"hidden_size": 512, "intermediate_size": 512, "num_local_experts": 16},
    "in 4 bits": QUANTIZED["gpt-oss-mxfp4"]
    | {"hidden_size": 1024, "intermediate_size": 1024, "num_local_experts": 24},
}
FEW_LAYERS, MANY_LAYERS = 2, 8
LOAD = """
import json, sys
from pathlib import Path
import torch
from minimal_vllm.engine.backends import choose_modules
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.loader import load_model

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024

folder, device = Path(sys.argv[1]), torch.device("cpu")
config = ModelConfig.from_checkpoint(folder)
modules = choose_modules("reference", config.quantization, torch.bfloat16, device)
torch.ones(1).bfloat16().float()
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
model = load_model(folder, config, torch.bfloat16, device, modules=modules, max_positions=64)
weights = sum(each.numel() * each.itemsize for each in model.parameters())
print(json.dumps([weights, status("VmHWM") - before - weights]))
"""


def write_zeros(folder, config):
    """Write a checkpoint of zeros, with a shard for each layer."""
    write_json(folder / "config.json", config)
    shards = {}
    for name, shape in tensor_shapes(config).items():
        layer = name.split(".")[2] if ".layers." in name else "0"
        dtype = torch.uint8 if name.endswith(("_blocks", "_scales")) else torch.bfloat16
        shards.setdefault(f"model-{layer}.safetensors", {})[name] = torch.zeros(shape, dtype=dtype)
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


@pytest.mark.parametrize("kind", CONFIGS)
def test_loading_takes_a_window_beside_the_weights_whatever_their_size(tmp_path, kind):
    measured = []
    for num_layers in (FEW_LAYERS, MANY_LAYERS):
        folder = tmp_path / str(num_layers)
        folder.mkdir()
        write_zeros(folder, CONFIGS[kind] | {"num_hidden_layers": num_layers})
        command = [sys.executable, "-c", LOAD, str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        )
        measured.append(json.loads(result.stdout))
    (few_weights, _), (many_weights, beside) = measured
    assert many_weights > 3 * few_weights
    assert many_weights > 6 * WINDOW_BYTES, "more than the windows that are allowed below"
    assert beside < 3 * WINDOW_BYTES
