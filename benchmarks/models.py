"""The models that the benchmarks run: the built-in one, or random weights in a known shape."""

import gc
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from minimal_vllm.demo import DEMO_MODEL_DIR

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
}
"""Name -> what its config.json says."""

SPREAD = 0.4
"""Standard deviation of the logarithm of the embeddings' lengths, see ``write_random_model``."""


def model_folder(name: str) -> Path:
    """The folder of a model: ``demo``, one of ``SHAPES`` (written at first use), or a folder."""
    if name == "demo":
        return DEMO_MODEL_DIR
    if name not in SHAPES:
        return Path(name)
    folder = Path(tempfile.gettempdir()) / "minimal-vllm-benchmarks" / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
        write_random_model(unfinished, SHAPES[name])
        unfinished.rename(folder)
    return folder


def write_random_model(
    folder: Path,
    shape: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "10GB",
    device: str = "cpu",
) -> None:
    """Write a checkpoint of random weights whose greedy tokens are well determined.

    Two implementations of a network agree up to rounding. If the two greatest logits are closer
    than that they choose different tokens, and the continuations have nothing in common from there
    on. Among 49,152 equally distributed logits that happens once in some thousand tokens; so the
    tokens' embeddings differ in length, as those of trained models do, which spreads the logits.
    The layers outweigh the embedding in the residual stream, or else tied embeddings would have
    each token predict itself.
    """
    torch.manual_seed(0)
    model_type = shape["architectures"][0].removesuffix("ForCausalLM").lower()
    config = AutoConfig.for_model(model_type, **shape)
    with torch.no_grad(), torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        for name, weight in model.named_parameters():
            if "embed_tokens" in name:
                weight.normal_(std=0.02)
                weight *= torch.randn(len(weight), 1).mul(SPREAD).exp().to(dtype)
            elif weight.dim() == 2:
                weight.normal_(std=2 * weight.shape[1] ** -0.5)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    del model
    gc.collect()
    torch.cuda.empty_cache()  # others are to have the GPU's memory
