"""Loading a checkpoint's weights: every parameter is filled once, and every tensor is used."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minimal_vllm.formats.gguf_file import find_gguf
from minimal_vllm.model.config import ModelConfig, read_json
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.divided_weights import Share, drop_biases_of_sums, take_shares
from minimal_vllm.model.gguf_weights import gguf_tensors
from minimal_vllm.model.layers import PLAIN_MODULES, Modules
from minimal_vllm.model.multimodal import text_tensor_name
from minimal_vllm.model.network import Network
from minimal_vllm.model.norm import RMSNorm
from minimal_vllm.model.quantization.mxfp4 import Mxfp4Matrices
from minimal_vllm.model.quantization.weight import QuantizedWeight
from minimal_vllm.model.quantization_config import GptqInt4
from minimal_vllm.model.registry import FAMILIES
from minimal_vllm.model.safetensors_file import FLOATS, SafetensorsTensor, read_header
from minimal_vllm.model.stored_tensor import Destination, StoredTensor

logger = logging.getLogger(__name__)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_LISTED = 8
"""Maximum number of tensors that an error names."""
NOT_NEEDED = (".input_scale", ".activation_scale", ".weight_shape", ".k_scale", ".v_scale")
"""Last parts of tensor names in quantized checkpoints that no parameter is filled from: shapes,
which config.json implies; fixed scales of activations, which get a scale per token here; and scales
of keys and values, which ``kv_scales`` reads if the cache is in FP8."""


@runtime_checkable
class HoldsWeights(Protocol):
    """Module for which a checkpoint has tensors."""

    def checkpoint_tensors(self) -> Iterator[tuple[str, Tensor | Destination]]:
        """Yield each tensor's name, relative to the parent module, and its destination."""
        ...


def load_model(
    checkpoint: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    max_positions: int | None = None,
    modules: Modules = PLAIN_MODULES,
    share: Share | None = None,
    progress: bool = False,
) -> Decoder:
    """Build the decoder and fill it from a checkpoint's safetensors files or GGUF file.

    The files are read in windows, and the numbers are dequantized and converted to ``dtype`` on the
    way to the parameters, so that memory never holds a second copy of the weights.

    Args:
        checkpoint: folder of a Hugging Face checkpoint, in one file or in shards, or a GGUF file.
        config: hyperparameters of the same checkpoint.
        dtype: see ``Decoder``.
        device: see ``Decoder``.
        max_positions: see ``Decoder``.
        modules: see ``Decoder``.
        share: whose part ``config`` is of a whole model. Default: it is the whole.
        progress: whether to show a progress bar on standard error, if that is a terminal.

    Raises:
        ValueError: a file is missing or damaged (the message names it), or the tensors don't match
            the model (the message lists those that are missing, unexpected or misfitting).
    """
    stored = _stored_tensors(checkpoint, config)
    model = Decoder(config, dtype, device, max_positions, modules)
    destinations = checkpoint_tensors(model)
    if config.quantization and isinstance(config.quantization.format, GptqInt4):
        stored = _without_zero_biases(stored, destinations)
    stored = _matching(checkpoint, stored, model, modules, share)
    total = sum(tensor.num_bytes for tensor in stored.values())
    with tqdm(
        desc="Loading weights",
        total=total,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: unless standard error is a terminal
    ) as bar:
        for name, tensor in stored.items():
            destination = destinations[name]
            if isinstance(destination, Tensor):
                tensor.copy_to(destination)
            else:
                destination.fill(tensor)
            bar.update(tensor.num_bytes)
    if config.norm_offset:
        for module in model.modules():
            if isinstance(module, RMSNorm):
                module.weight.add_(config.norm_offset)
    if share is not None and share.rank > 0:
        drop_biases_of_sums(model)
    model.after_loading(approximate=any(map(_is_quantized, stored.values())))
    return model


def _is_quantized(tensor: StoredTensor) -> bool:
    """Return whether a tensor is dequantized from fewer than 16 bits per number."""
    return tensor.is_float and tensor.num_bytes < 2 * prod(tensor.shape)


def init_random(model: Network, seed: int) -> None:
    """Fill the parameters with small random numbers, and norms with ones, for benchmarks."""
    generator = torch.Generator(model.device).manual_seed(seed)
    norms = {id(module.weight) for module in model.modules() if isinstance(module, RMSNorm)}
    kinds = QuantizedWeight | Mxfp4Matrices
    quantized = [module for module in model.modules() if isinstance(module, kinds)]
    for each in quantized:
        each.init_random(generator, std=0.02)
    in_quantized = {id(weight) for each in quantized for weight in each.parameters()}
    for weight in model.parameters():
        if id(weight) in in_quantized:
            continue
        if id(weight) in norms:
            weight.fill_(1)
        else:
            weight.normal_(std=0.02, generator=generator)
    model.after_loading()


def checkpoint_tensors(model: Decoder) -> dict[str, Tensor | Destination]:
    """Return the destination of each tensor of a checkpoint, by the tensor's name.

    Together the destinations are all of the model's parameters. The rows of a fused projection are
    split among the tensors that it consists of.
    """
    family = FAMILIES[model.config.architecture]
    tensors = {
        family.checkpoint_name(f"model.{name}"): memory
        for name, memory in tensors_within(model).items()
    }
    head = tensors.pop("model.lm_head.weight")
    return tensors if model.has_tied_embeddings else {**tensors, "lm_head.weight": head}


def tensors_within(network: nn.Module) -> dict[str, Tensor | Destination]:
    """Return the destinations of all tensors by their paths in the network."""
    tensors: dict[str, Tensor | Destination] = {}
    for path, module in network.named_modules():
        if isinstance(module, HoldsWeights):
            parent = path.rpartition(".")[0]
            for name, memory in module.checkpoint_tensors():
                tensors[".".join(filter(None, [parent, name]))] = memory
    return tensors


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint: the single file, or the shards in its index.

    Raises:
        ValueError: the folder has neither, or a shard is missing.
    """
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    index = folder / INDEX_FILE
    if not index.exists():
        others = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt"))
        hint = f"; {others[0]} is a pickle: convert it to safetensors" if others else ""
        raise ValueError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")
    weight_map = read_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise ValueError(f"{index} has no weight_map that says which shard holds which tensor")
    shards = [folder / name for name in sorted(set(names))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ValueError(f"{index} names shards that are missing: {_listing(missing)}")
    return shards


def _stored_tensors(checkpoint: Path, config: ModelConfig) -> Mapping[str, StoredTensor]:
    gguf = find_gguf(checkpoint)
    if gguf is not None:
        return gguf_tensors(gguf, config)
    stored = _safetensors(checkpoint_files(checkpoint), config)
    if config.quantization is None:
        return stored
    return {
        name.replace(".weight_scale_inv", ".weight_scale"): tensor
        for name, tensor in stored.items()
        if not name.endswith(NOT_NEEDED)
    }


def _safetensors(files: list[Path], config: ModelConfig) -> dict[str, SafetensorsTensor]:
    """Return the tensors of all files, except those that the model doesn't need."""
    stored: dict[str, SafetensorsTensor] = {}
    skipped: Counter[str] = Counter()
    for path in files:
        for full_name, tensor in read_header(path).items():
            name = text_tensor_name(full_name) if config.part_of else full_name
            if name is None:
                skipped[full_name.removeprefix("model.").partition(".")[0]] += 1
                continue
            if name.endswith(".rotary_emb.inv_freq"):  # computed from the config
                continue
            if name == "lm_head.weight" and config.tie_word_embeddings:  # a copy of the embedding
                continue
            if name in stored:
                raise ValueError(f"{name} is both in {stored[name].path.name} and in {path}")
            stored[name] = tensor
    if skipped:
        logger.warning(
            "Only the text model of %s is loaded; the tensors of other modalities are skipped: %s",
            config.part_of,
            ", ".join(f"{module} ({count})" for module, count in sorted(skipped.items())),
        )
    return stored


def _without_zero_biases(
    stored: Mapping[str, StoredTensor], destinations: Mapping[str, Tensor | Destination]
) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint without biases of zeros that the model doesn't have.

    AutoGPTQ used to write a bias for each projection, whether it had one or not.
    """
    return {
        name: tensor
        for name, tensor in stored.items()
        if name in destinations or not name.endswith(".bias") or not _is_zero(tensor)
    }


def _is_zero(stored: StoredTensor) -> bool:
    numbers = torch.empty(stored.shape)
    stored.copy_to(numbers)
    return not numbers.any()


def _matching(
    checkpoint: Path,
    stored: Mapping[str, StoredTensor],
    model: Decoder,
    modules: Modules,
    share: Share | None,
) -> Mapping[str, StoredTensor]:
    """Return the tensors to load, or a rank's shares of them; all must match the whole model."""
    if share is None:
        check_match(checkpoint, stored, checkpoint_tensors(model))
        return stored
    as_stored = replace(PLAIN_MODULES, experts=modules.experts, convert=modules.convert)
    whole = Decoder(share.whole, model.dtype, torch.device("meta"), 1, as_stored)
    check_match(checkpoint, stored, checkpoint_tensors(whole))
    return take_shares(stored, checkpoint_tensors(model), share, model.config)


def check_match(
    checkpoint: Path,
    stored: Mapping[str, StoredTensor],
    destinations: Mapping[str, Tensor | Destination],
) -> None:
    """Check that a checkpoint has the tensors of a model, in shapes and dtypes that fit.

    Args:
        checkpoint: folder or file, to be named in the error.
        stored: the checkpoint's tensors by name.
        destinations: the model's tensors by name.

    Raises:
        ValueError: they differ; the message names all differences.
    """
    misfits = []
    for name in stored.keys() & destinations.keys():
        found, destination = stored[name], destinations[name]
        wanted = tuple(destination.shape)
        dtypes = _bytes_of(destination) if isinstance(destination, Tensor) else destination.dtypes
        if found.shape != wanted:
            misfits.append(f"{name} is {list(found.shape)}, must be {list(wanted)}")
        elif not (found.is_float if dtypes is None else found.dtype in dtypes):
            choices = ", ".join(dtypes or FLOATS)
            misfits.append(f"{name} is {found.dtype}, must be one of {choices}")
    differences = {
        "missing": list(destinations.keys() - stored.keys()),
        "unexpected": list(stored.keys() - destinations.keys()),
        "misfitting": misfits,
    }
    complaints = [f"{kind}: {_listing(names)}" for kind, names in differences.items() if names]
    if complaints:
        source = "metadata" if find_gguf(checkpoint) else "config.json"
        raise ValueError(
            f"the tensors in {checkpoint} don't match its {source}; " + "; ".join(complaints)
        )


def _bytes_of(destination: Tensor) -> tuple[str, ...] | None:
    """Return the type that is stored for a tensor of bytes; None: numbers, which are converted."""
    return ("U8",) if destination.dtype == torch.uint8 else None


def _listing(names: list[str]) -> str:
    shown = sorted(names)[:MAX_LISTED]
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(shown) + more
