import torch
from checkpoints import FAMILIES, write_json

from minimal_vllm.attention.reference import ReferenceAttention
from minimal_vllm.attention.tiled import TiledAttention
from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.backends import choose_attention
from minimal_vllm.model.config import ModelConfig


def test_the_backend_is_the_one_that_was_named(tmp_path):
    write_json(tmp_path / "config.json", FAMILIES["llama"])
    model, device = ModelConfig.from_checkpoint(tmp_path), torch.device("cpu")
    chosen = {
        name: type(
            choose_attention(
                EngineConfig(model=str(tmp_path), attention_backend=name),
                model,
                torch.float32,
                device,
            )
        )
        for name in ("auto", "tiled", "reference")
    }
    assert chosen == {
        "auto": TiledAttention,
        "tiled": TiledAttention,
        "reference": ReferenceAttention,
    }
