"""Choosing the EAGLE-3 head of speculative decoding, and giving it a cache."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minimal_vllm.cache.layer_groups import LayerGroups
from minimal_vllm.config import EngineConfig
from minimal_vllm.demo import EAGLE_HEAD_DIR
from minimal_vllm.engine.backends import choose_modules
from minimal_vllm.engine.draft_fit import check_eagle_fits
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.eagle import EagleHead, HiddenStates
from minimal_vllm.model.eagle_config import EagleConfig
from minimal_vllm.model.eagle_loader import PICKLED_FILE, load_eagle, read_eagle
from minimal_vllm.model.hub import resolve_model
from minimal_vllm.model.loader import init_random
from minimal_vllm.model.stored_tensor import StoredTensor
from minimal_vllm.model.supported import DTYPE_BYTES


@dataclass(frozen=True)
class EagleFiles:
    """An EAGLE-3 head's checkpoint, its hyperparameters, and its tensors by name."""

    checkpoint: Path
    config: EagleConfig
    tensors: Mapping[str, StoredTensor]

    def weight_bytes(self, dtype: str) -> int:
        """Return the bytes that its weights take."""
        return self.config.weight_bytes(dtype)

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Return the bytes that a token takes: key and value, and the fused hidden state."""
        itemsize = DTYPE_BYTES[dtype]
        return self.config.bytes_per_token(itemsize, itemsize)


def find_eagle(config: EngineConfig, target: ModelConfig, model_len: int) -> EagleFiles:
    """Return the head's files, downloaded if necessary.

    Args:
        config: the user's configuration.
        target: hyperparameters of the model that it guesses for.
        model_len: maximum length of a request.

    Raises:
        ValueError: there is no such head, or it can't guess for the target.
    """
    speculative = config.speculative_config
    name = speculative.model if speculative else None
    checkpoint = resolve_model(
        name or str(EAGLE_HEAD_DIR), None, config.download_dir, also=[PICKLED_FILE]
    )
    if config.load_format == "dummy":
        files = EagleFiles(checkpoint, EagleConfig.from_checkpoint(checkpoint), {})
    else:
        files = EagleFiles(checkpoint, *read_eagle(checkpoint))
    check_eagle_fits(checkpoint.name, files.config, target, model_len)
    return files


def load_head(
    config: EngineConfig, files: EagleFiles, target: Decoder, model_len: int
) -> EagleHead:
    """Load a head, or fill it with random weights if ``load_format`` says so.

    Args:
        config: the user's configuration.
        files: the head's files, from ``find_eagle``.
        target: the model that it guesses for.
        model_len: maximum length of a request.

    Raises:
        ValueError: its tensors are not those that its config.json implies.
    """
    head = EagleHead(
        files.config,
        target.vocab_size,
        target.config.num_layers,
        target.dtype,
        target.device,
        model_len,
        choose_modules(config.attention_backend, None, target.dtype, target.device),
    )
    if config.load_format == "dummy":
        init_random(head, config.seed + 1)
    else:
        load_eagle(head, files.checkpoint, files.tensors)
    if not files.config.has_embedding:
        head.share_embedding(target.embed_tokens)
    return head


def let_read(head: EagleHead, target: Decoder, groups: LayerGroups, num_slots: int) -> None:
    """Make the model write its hidden states where the head reads them.

    Args:
        head: the head.
        target: the model.
        groups: groups of the model's layers.
        num_slots: number of tokens that the cache of a layer has room for.
    """
    head.allocate_states(num_slots)
    target.tap = HiddenStates(head, groups.of_layer.index(0), head.read_layers)
