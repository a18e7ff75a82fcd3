import pytest
import torch
from checkpoints import FAMILIES, write_json

from minimal_vllm.cache.kv_cache import allocate_kv_cache
from minimal_vllm.cache.layer_groups import group_layers
from minimal_vllm.model.config import ModelConfig


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_layer_has_zeroed_keys_and_values_of_its_own(tmp_path, dtype):
    write_json(tmp_path / "config.json", FAMILIES["qwen3"])
    config = ModelConfig.from_checkpoint(tmp_path)
    caches = allocate_kv_cache(
        groups=group_layers([None] * config.num_layers, max_model_len=512),
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


def test_layers_of_different_groups_share_tensors_and_layers_of_one_group_do_not():
    caches = allocate_kv_cache(
        groups=group_layers([8, None, 8, 8, None, 8], max_model_len=512),
        num_blocks=5,
        num_kv_heads=1,
        block_size=4,
        head_dim=2,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    memory = [layer.key.data_ptr() for layer in caches]
    assert memory[1] == memory[0] == memory[3] != memory[4] == memory[2] == memory[5]
