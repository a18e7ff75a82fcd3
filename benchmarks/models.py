"""Models of the benchmarks: the built-in model, or random weights in a known shape."""

import gc
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

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
    "llama-1.2b": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 49152,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
    },
}
"""Contents of config.json by model name."""

SPREAD = 0.4
"""Standard deviation of the logarithm of the embeddings' lengths, see ``write_random_model``."""


def model_folder(name: str) -> Path:
    """Return the folder of a model.

    Args:
        name: ``demo``, one of ``SHAPES`` (its checkpoint is written at first use), or a folder.
    """
    if name == "demo":
        return DEMO_MODEL_DIR
    if name not in SHAPES:
        return Path(name)
    folder = Path(tempfile.gettempdir()) / "minimal-vllm-benchmarks" / f"{name}-bfloat16"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
        write_random_model(unfinished, SHAPES[name], torch.bfloat16)
        unfinished.rename(folder)
    return folder


def wordy_model_folder(name: str) -> Path:
    """Return a folder with a model's configuration and a tokenizer of all its tokens, no weights.

    It is for ``load_format="dummy"``. The tokenizer is the built-in model's, whose vocabulary is
    filled up with words, so that each token that a model of random weights samples has a text.

    Args:
        name: one of ``SHAPES``, or a folder.
    """
    if name not in SHAPES:
        return Path(name)
    folder = Path(tempfile.gettempdir()) / "minimal-vllm-benchmarks" / f"{name}-wordy"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = json.loads((DEMO_MODEL_DIR / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for token_id in range(len(vocabulary), SHAPES[name]["vocab_size"]):
        vocabulary[f"Ġw{token_id}"] = token_id
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    model_type = SHAPES[name]["architectures"][0].removesuffix("ForCausalLM").lower()
    config = {"model_type": model_type, **SHAPES[name]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_random_model(
    folder: Path,
    shape: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "10GB",
    device: str = "cpu",
) -> None:
    """Write a checkpoint of random weights whose greedy tokens are well determined.

    Two implementations of a network agree up to rounding. If the two largest logits differ by less
    than that, they choose different tokens, and from there on the outputs have nothing in common.
    Among 49,152 identically distributed logits this happens once in some thousand tokens. The
    embeddings therefore differ in length, as in trained models, which spreads the logits. The
    layers outweigh the embedding in the residual stream, because otherwise tied embeddings would
    make each token predict itself.

    Args:
        folder: Folder of the checkpoint.
        shape: Contents of its config.json.
        dtype: Data type of the weights.
        max_shard_size: Maximum size of a file, such as 100MB.
        device: Device that draws the random numbers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

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
    torch.cuda.empty_cache()  # other processes need the GPU's memory
