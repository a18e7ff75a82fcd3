"""``LLM.llm_engine``: the attributes that scripts for vLLM read from its engine."""

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from minimal_vllm.config import EngineConfig, SchedulerConfig
from minimal_vllm.engine.build import BuiltEngine
from minimal_vllm.formats.gguf_file import find_gguf, read_gguf
from minimal_vllm.model.config import read_json
from minimal_vllm.model.gguf_config import config_json


class ModelConfig:
    """Description of the model, with the names of vLLM's ``ModelConfig``.

    Attributes:
        model: model, as passed to ``LLM``.
        tokenizer: tokenizer, as passed to ``LLM``. Default: the model's own.
        revision: branch, tag or commit on the hub.
        dtype: data type of weights and KV cache.
        seed: seed of the engine.
        max_model_len: maximum number of tokens in a request.
        max_logprobs: maximum number of log-probabilities per token.
        skip_tokenizer_init: whether no tokenizer was loaded.
    """

    def __init__(self, config: EngineConfig, built: BuiltEngine) -> None:
        self._checkpoint = built.files.checkpoint
        self._shape = built.files.config
        self.model = config.model
        self.tokenizer = config.tokenizer or config.model
        self.revision = config.revision
        self.dtype = built.dtype
        self.seed = config.seed
        self.max_model_len = built.scheduler_config.max_model_len
        self.max_logprobs = config.max_logprobs
        self.skip_tokenizer_init = config.skip_tokenizer_init

    @cached_property
    def hf_config(self) -> Any:
        """Return the model's config.json, as transformers' object where it is installed.

        A GGUF file has none; its metadata are returned under the names of a config.json.
        """
        gguf = find_gguf(self._checkpoint)
        if gguf is not None:
            return SimpleNamespace(**config_json(read_gguf(gguf)))
        if find_spec("transformers") is not None:
            from transformers import AutoConfig

            return AutoConfig.from_pretrained(self._checkpoint)
        return SimpleNamespace(**read_json(self._checkpoint / "config.json"))

    def get_vocab_size(self) -> int:
        """Return the number of logits per token."""
        return self._shape.vocab_size

    def get_hidden_size(self) -> int:
        """Return the number of channels of the residual stream."""
        return self._shape.hidden_size

    def get_head_size(self) -> int:
        """Return the number of channels of an attention head."""
        return self._shape.head_dim

    def get_total_num_kv_heads(self) -> int:
        """Return the number of key and value heads per layer."""
        return self._shape.num_kv_heads


@dataclass(frozen=True)
class CacheConfig:
    """Size of the KV cache, with the names of vLLM's ``CacheConfig``."""

    block_size: int
    """Number of tokens per block."""
    num_gpu_blocks: int
    """Number of blocks."""
    enable_prefix_caching: bool
    """Whether blocks are shared between equal prefixes."""


class LLMEngine:
    """The configuration of a running engine, with the names of vLLM's ``LLMEngine``.

    Attributes:
        model_config: the model.
        cache_config: the KV cache.
        scheduler_config: limits and policy of the scheduler.
    """

    def __init__(self, config: EngineConfig, built: BuiltEngine) -> None:
        self.model_config = ModelConfig(config, built)
        self.scheduler_config: SchedulerConfig = built.scheduler_config
        self.cache_config = CacheConfig(
            config.block_size, built.num_blocks, config.enable_prefix_caching
        )
