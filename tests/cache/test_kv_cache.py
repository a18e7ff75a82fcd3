import pytest
import torch
from checkpoints import FAMILIES, write_json

from minimal_vllm.cache.kv_cache import allocate_kv_cache
from minimal_vllm.model.config import ModelConfig


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_layer_has_zeroed_keys_and_values_of_its_own(tmp_path, dtype):
    write_json(tmp_path / "config.json", FAMILIES["qwen3"])
    config = ModelConfig.from_checkpoint(tmp_path)
    caches = allocate_kv_cache(
        num_layers=config.num_layers,
        num_blocks=5,
        num_kv_heads=config.num_kv_heads,
        block_size=8,
        head_dim=config.head_dim,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    assert len(caches) == 3
    for layer in caches:
        for tensor in layer:
            assert (tensor.shape, tensor.dtype) == ((5, 2, 8, 16), dtype)
            assert not tensor.any()
            tensor.fill_(1)  # if two shared memory, the next would not be zero
