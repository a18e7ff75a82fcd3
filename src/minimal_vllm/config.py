"""Everything that can be set, frozen and validated once."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.dataclasses import dataclass

from minimal_vllm.cache.eviction import EVICTION_STRATEGIES
from minimal_vllm.plugin import Part

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)

PositiveInt = Annotated[int, Field(ge=1)]

BUILT_IN = {
    "attention_backend": ("auto", "reference", "tiled", "triton"),
    "eviction_policy": tuple(EVICTION_STRATEGIES),
}
"""The names of the parts of which there are several."""


@dataclass(frozen=True, config=_CONFIG)
class SchedulerConfig:
    """What the scheduler must keep to."""

    max_model_len: PositiveInt
    """No request grows beyond so many tokens, prompt and output together."""
    max_num_batched_tokens: PositiveInt = 2048
    """At most so many tokens are computed in one step."""
    max_num_seqs: PositiveInt = 256
    """At most so many requests run at once."""
    block_size: PositiveInt = 16
    """Tokens per KV block."""
    enable_prefix_caching: bool = True
    """Keep the blocks of ended requests, and share those of equal prefixes."""
    enable_chunked_prefill: bool = True
    """Let a prompt be computed in several steps."""
    policy: Literal["fcfs", "priority"] = "fcfs"
    """Who goes first: who came first, or whose ``priority`` is smaller."""

    @model_validator(mode="after")
    def _limits_agree(self) -> "SchedulerConfig":
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}): each running request is owed a token a step"
            )
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ValueError(
                f"without chunked prefill a prompt is computed in one step, so "
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_model_len ({self.max_model_len})"
            )
        return self

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)


@dataclass(frozen=True, config=_CONFIG)
class EngineConfig:
    """What a user may choose, with vLLM's names; None means: from the model or the machine."""

    model: str
    """A folder in Hugging Face's format, a .gguf file, a model that ``minimal-vllm fetch`` has
    fetched, or the id of a model on the hub."""
    tokenizer: str | None = None
    """The same for the tokenizer; None: the model's own."""
    skip_tokenizer_init: bool = False
    """Work on token ids alone: no tokenizer is loaded and no text is returned."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    download_dir: str | None = None
    """Where models from the hub are kept; None: the hub's usual cache."""
    load_format: Literal["auto", "dummy"] = "auto"
    """``dummy``: random weights in the model's shape, for measurements."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What weights and cache are held in; auto: the checkpoint's own, on a GPU, and what computes
    fastest here on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    attention_backend: Part = "auto"
    """How attention is computed; ``reference`` is the slow, plain one, ``tiled`` that for CPUs,
    ``triton`` our kernels for GPUs; or a class of yours, FILE.py:CLASS."""
    max_model_len: PositiveInt | None = None
    """No request grows beyond so many tokens; None: what the model was trained for, or what the
    memory holds if that is less."""
    block_size: PositiveInt = 16
    """Tokens per KV block."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of the device's memory that this process may use, weights included; None: 0.9 of
    a GPU, or half of the RAM, which is not the engine's alone."""
    num_gpu_blocks_override: PositiveInt | None = None
    """So many blocks, whatever the memory."""
    eviction_policy: Part = "lru"
    """Which cached block is forgotten first: ``lru``, ``lfu``, ``fifo``; or a class of yours,
    FILE.py:CLASS."""
    block_pool: Part | None = None
    """A class of yours, FILE.py:CLASS, in place of the block pool."""
    scheduler: Part | None = None
    """A class of yours, FILE.py:CLASS, in place of the scheduler."""
    sampler: Part | None = None
    """A class of yours, FILE.py:CLASS, in place of the sampler."""
    max_num_batched_tokens: PositiveInt | None = None
    """At most so many tokens are computed in one step; None: 2,048 on a CPU, 8,192 on a GPU, and
    16,384 on one with 70 GiB or more, but for a server, where others wait for a step to end."""
    max_num_seqs: PositiveInt = 256
    """At most so many requests run at once."""
    enable_prefix_caching: bool = True
    """Keep the blocks of ended requests, and share those of equal prefixes."""
    enable_chunked_prefill: bool = True
    """Let a prompt be computed in several steps."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """Who goes first: who came first, or whose ``priority`` is smaller."""
    max_logprobs: Annotated[int, Field(ge=-1)] = 20
    """No request may ask for the log-probabilities of more top tokens; -1: of the vocabulary."""
    generation_config: Literal["auto", "vllm"] = "auto"
    """Default sampling parameters: the model's own (``auto``), or the engine's (``vllm``)."""
    chat_template: str | None = None
    """A chat template, or the file that holds it; None: the model's own."""
    tensor_parallel_size: Literal[1] = 1
    """How many GPUs share the model: one."""
    enforce_eager: bool = False
    """Launch every kernel by itself, instead of replaying CUDA graphs of steps."""
    async_scheduling: bool | None = None
    """Plan and launch a step while the one before it still runs; None: where that is possible, and
    scheduler and sampler are the built-in ones."""
    cascade_attention: bool = True
    """Read the beginnings that running requests share once per step, not once per request; in
    CUDA graphs only."""
    trust_remote_code: Literal[False] = False
    """Run code that comes with a model: never."""
    seed: int = 0
    """Seeds the requests that have no seed of their own, in the order of their arrival."""

    @field_validator("attention_backend", "eviction_policy", "block_pool", "scheduler", "sampler")
    @classmethod
    def _part_is_named(cls, part: Part | None, field: ValidationInfo) -> Part | None:
        names = BUILT_IN.get(field.field_name or "", ())
        if isinstance(part, str) and ":" not in part and part not in names:
            known = f"be one of {', '.join(names)}, or " if names else ""
            raise ValueError(f"should {known}name a class, as my_file.py:MyClass, not {part!r}")
        return part
