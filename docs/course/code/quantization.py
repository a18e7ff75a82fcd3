"""Quantize a model in several ways, and print the bytes of its weights and its perplexity.

    python docs/course/code/quantization.py
    python docs/course/code/quantization.py --model smollm2 [--text NOVEL.txt]

Weights are rounded to the nearest number that a format has, without the calibration that published
checkpoints have got: that is the simplest way, and the one that loses most.
"""

import json
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from safetensors.torch import save_file
from torch import Tensor

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.formats.gguf_file import find_gguf, read_gguf
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.gguf_config import config_json
from minimal_vllm.model.hub import resolve_model
from minimal_vllm.model.loader import checkpoint_tensors, load_model
from minimal_vllm.model.quantization.fp8 import quantize_rows
from minimal_vllm.model.weight_bytes import weight_bytes

ALICE = Path(__file__).parent / "alice.txt"
WINDOW = 1024
"""Number of tokens that are predicted from each other."""

Stored = dict[str, Tensor]


def fp8_rows(weight: Tensor) -> Stored:
    """Return e4m3 numbers with one scale per row."""
    numbers, scale = quantize_rows(weight)
    return {"weight": numbers, "weight_scale": scale}


def fp8_tensor(weight: Tensor) -> Stored:
    """Return e4m3 numbers with one scale for the whole matrix."""
    numbers, scale = quantize_rows(weight.reshape(1, -1))
    return {"weight": numbers.view(weight.shape), "weight_scale": scale.view(1)}


def fp8_blocks(weight: Tensor) -> Stored:
    """Return e4m3 numbers with one scale per block of 128 × 128."""
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % 128, 0, -rows % 128))
    down, across = padded.shape[0] // 128, padded.shape[1] // 128
    blocks = padded.view(down, 128, across, 128).transpose(1, 2).reshape(down * across, -1)
    numbers, scale = quantize_rows(blocks)
    tiles = numbers.view(down, across, 128, 128).transpose(1, 2).reshape(padded.shape)
    return {
        "weight": tiles[:rows, :columns].contiguous(),
        "weight_scale_inv": scale.view(down, across),
    }


def int4(weight: Tensor, group_size: int) -> Stored:
    """Return integers from 0 to 15, 8 to an int32, with one scale per group of columns."""
    groups = weight.view(len(weight), -1, group_size)
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 7.5
    numbers = (groups / scale + 8).round().clamp(0, 15).to(torch.int32).view(len(weight), -1, 8)
    packed = (numbers << (4 * torch.arange(8, dtype=torch.int32))).sum(-1, dtype=torch.int32)
    return {"weight_packed": packed, "weight_scale": scale.squeeze(-1)}


def compressed(storage: str, **weights: Any) -> dict[str, Any]:
    """Return the ``quantization_config`` of a compressed-tensors checkpoint."""
    group = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": storage, "config_groups": {"0": group}}


FP8 = {"num_bits": 8, "type": "float"}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group"}
FORMS: dict[str, tuple[dict[str, Any], Any]] = {
    "16 bits": ({}, None),
    "FP8, a scale per row": (compressed("float-quantized", **FP8, strategy="channel"), fp8_rows),
    "FP8, one scale": (compressed("float-quantized", **FP8, strategy="tensor"), fp8_tensor),
    "FP8, blocks of 128": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        fp8_blocks,
    ),
    "4 bits, groups of 32": (
        compressed("pack-quantized", **INT4, group_size=32),
        lambda weight: int4(weight, 32),
    ),
    "4 bits, groups of 64": (
        compressed("pack-quantized", **INT4, group_size=64),
        lambda weight: int4(weight, 64),
    ),
}
"""Forms of the weights: ``quantization_config``, and the function that quantizes a matrix."""


def write_forms(model: str, folder: Path) -> dict[str, Path]:
    """Write a checkpoint in each form, and return their folders."""
    checkpoint = resolve_model(model)
    gguf = find_gguf(checkpoint)
    config = config_json(read_gguf(gguf)) if gguf else json.loads(
        (checkpoint / "config.json").read_text()
    )  # fmt: skip
    decoder = load_model(
        checkpoint, ModelConfig.from_checkpoint(checkpoint), torch.float32, torch.device("cpu")
    )
    tensors = {name: each for name, each in checkpoint_tensors(decoder).items()
               if isinstance(each, Tensor)}  # fmt: skip
    folders = {}
    for number, (form, (quantization, quantize)) in enumerate(FORMS.items()):
        stored: Stored = {}
        for name, tensor in tensors.items():
            if quantize and name.endswith("_proj.weight"):
                parts = quantize(tensor)
                path = name.removesuffix("weight")
                stored |= {f"{path}{part}": each.contiguous() for part, each in parts.items()}
            else:
                stored[name] = tensor.bfloat16().contiguous()
        folders[form] = folder / str(number)
        folders[form].mkdir()
        save_file(stored, folders[form] / "model.safetensors")
        text = json.dumps({**config, "quantization_config": quantization})
        (folders[form] / "config.json").write_text(text)
    return folders


def perplexity(checkpoint: Path, tokens: list[int], **options: Any) -> tuple[float, int]:
    """Return a model's perplexity on a text, and the bytes of its weights in 16 bits or less."""
    llm = LLM(str(checkpoint), device="cpu", dtype="float32", skip_tokenizer_init=True,
              max_model_len=WINDOW + 1, num_gpu_blocks_override=2 * WINDOW // 16,
              **options)  # fmt: skip
    windows = [tokens[start : start + WINDOW] for start in range(0, len(tokens), WINDOW)]
    prompts = [{"prompt_token_ids": window} for window in windows if len(window) > 1]
    outputs = llm.generate(
        prompts, SamplingParams(max_tokens=1, prompt_logprobs=0, ignore_eos=True), use_tqdm=False
    )
    found = [
        logprobs[token].logprob
        for output in outputs
        for token, logprobs in zip(
            output.prompt_token_ids, output.prompt_logprobs or [], strict=True
        )
        if logprobs is not None
    ]
    return exp(-sum(found) / len(found)), weight_bytes(llm.built.files.config, "bfloat16")


@click.command()
@click.option("--model", default=str(DEMO_MODEL_DIR), help="Folder or name. Default: built in.")
@click.option("--text", type=click.Path(path_type=Path), default=ALICE, help="File to predict.")
@click.option("--tokens", "most", default=4096, show_default=True, help="Tokens to predict.")
def main(model: str, text: Path, most: int) -> None:
    """Print a table with a row for each form of the weights."""
    tokenizer = LLM(
        model, device="cpu", num_gpu_blocks_override=1, max_model_len=16
    ).get_tokenizer()
    tokens = list(tokenizer.encode(text.read_text(encoding="utf-8")))[:most]
    print(f"{len(tokens):,} tokens of {text.name}")
    print(f"{'':26}{'MB':>6}{'of 16 bits':>12}{'perplexity':>12}{'worse by':>10}")
    with TemporaryDirectory() as folder:
        first: tuple[float, int] | None = None
        checkpoints = write_forms(model, Path(folder))
        rows: list[tuple[str, Path, dict[str, str]]]
        rows = [(form, checkpoint, {}) for form, checkpoint in checkpoints.items()]
        whole = checkpoints["16 bits"]
        rows.insert(4, ("8-bit integers", whole, {"quantization": "int8"}))
        rows.append(("16 bits, KV cache in FP8", whole, {"kv_cache_dtype": "fp8"}))
        for form, checkpoint, options in rows:
            found, size = perplexity(checkpoint, tokens, **options)
            first = first or (found, size)
            share, loss = size / first[1], found / first[0] - 1
            print(f"{form:26}{size / 1e6:6.1f}{share:12.0%}{found:12.2f}{loss:10.1%}", flush=True)


if __name__ == "__main__":
    main()
