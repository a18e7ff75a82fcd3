"""Choosing the draft model or head of speculative decoding, and giving it a cache."""

from dataclasses import dataclass
from pathlib import Path

from minimal_vllm.cache.kv_cache import allocate_kv_cache
from minimal_vllm.cache.layer_groups import group_layers
from minimal_vllm.config import EngineConfig, SchedulerConfig
from minimal_vllm.demo import DRAFT_MODEL_DIR
from minimal_vllm.engine.backends import choose_attention
from minimal_vllm.engine.draft_fit import check_draft_fits
from minimal_vllm.engine.eagle import EagleFiles, find_eagle, let_read
from minimal_vllm.engine.sizing import choose_kv_dtype
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.eagle import EagleHead
from minimal_vllm.model.hub import resolve_model
from minimal_vllm.model.network import Network
from minimal_vllm.model.weight_bytes import weight_bytes
from minimal_vllm.runner.interface import CachedModel
from minimal_vllm.speculation.draft_model import DraftModel
from minimal_vllm.speculation.eagle_model import EagleModel
from minimal_vllm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class DraftFiles:
    """A draft model's checkpoint, and its hyperparameters."""

    checkpoint: Path
    config: ModelConfig

    def weight_bytes(self, dtype: str) -> int:
        """Return the bytes that its weights take."""
        return weight_bytes(self.config, dtype)

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Return the bytes that a token takes in its cache."""
        return self.config.kv_bytes_per_token(dtype)


def find_draft(
    config: EngineConfig, target: ModelConfig, tokenizer: Tokenizer | None, model_len: int
) -> DraftFiles | EagleFiles | None:
    """Return the files of the draft model or head, downloaded if necessary; None without one.

    Args:
        config: the user's configuration.
        target: hyperparameters of the model that it guesses for.
        tokenizer: tokenizer of that model, if it has one.
        model_len: maximum length of a request.

    Raises:
        ValueError: the draft model or head can't guess for the target.
    """
    speculative = config.speculative_config
    if speculative is None or not speculative.in_passes:
        return None
    if speculative.guesser == "eagle3":
        return find_eagle(config, target, model_len)
    checkpoint = resolve_model(speculative.model or str(DRAFT_MODEL_DIR), None, config.download_dir)
    draft = ModelConfig.from_checkpoint(checkpoint, None)
    check_draft_fits(checkpoint.name, draft, target, model_len)
    if tokenizer is not None:
        _check_vocabulary(checkpoint, draft, tokenizer)
    return DraftFiles(checkpoint, draft)


def _check_vocabulary(checkpoint: Path, draft: ModelConfig, tokenizer: Tokenizer) -> None:
    own = Tokenizer(checkpoint)
    for token_id in range(draft.vocab_size):
        token, expected = (each.backend.id_to_token(token_id) for each in (own, tokenizer))
        if token != expected:
            raise ValueError(
                f"token {token_id} is {token!r} for the draft model {checkpoint.name}, but "
                f"{expected!r} for the model: choose a draft model with the same tokenizer"
            )


def make_draft_model(
    config: EngineConfig,
    limits: SchedulerConfig,
    target: CachedModel,
    decoder: Network | None,
    num_blocks: int,
) -> DraftModel | None:
    """Give a draft model or head its attention and its cache, with the pool's number of blocks.

    Args:
        config: the user's configuration.
        limits: limits of the scheduler.
        target: the model that it guesses for.
        decoder: the draft model's network, or the head; None if there is none.
        num_blocks: number of KV blocks in the pool.
    """
    if decoder is None:
        return None
    draft, device, dtype = decoder.config, decoder.device, decoder.dtype
    groups = group_layers([None] * draft.num_layers, draft.max_positions)
    caches = allocate_kv_cache(
        groups=groups,
        num_blocks=num_blocks,
        num_kv_heads=draft.num_kv_heads,
        block_size=config.block_size,
        head_dim=draft.head_dim,
        dtype=choose_kv_dtype(config, dtype),
        device=device,
    )
    attention = choose_attention(config, draft, dtype, device)
    model = CachedModel(decoder, attention, caches, groups, config.block_size, device)
    num_groups, max_step_tokens = len(limits.windows), limits.max_num_batched_tokens
    if isinstance(decoder, EagleHead) and isinstance(target.decoder, Decoder):
        let_read(decoder, target.decoder, target.groups, num_blocks * config.block_size)
        return EagleModel(decoder, model, num_groups, num_blocks, max_step_tokens)
    return DraftModel(model, num_groups, num_blocks, max_step_tokens)
