"""Configuration of the engine: frozen dataclasses, validated when they are made."""

from bisect import bisect_right
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic.dataclasses import dataclass

from minimal_vllm.cache.eviction import EVICTION_STRATEGIES
from minimal_vllm.cache.layer_groups import num_blocks_behind
from minimal_vllm.plugin import Part
from minimal_vllm.settings import SETTINGS, clear_errors
from minimal_vllm.vllm_arguments import ENGINE, accepts

PositiveInt = Annotated[int, Field(ge=1)]

BUILT_IN = {
    "attention_backend": ("auto", "reference", "tiled", "triton"),
    "eviction_policy": tuple(EVICTION_STRATEGIES),
}
"""Names of the built-in classes, for the fields that choose one by name."""

GUESSERS = ("ngram", "draft_model", "eagle3")
"""Names of the built-in guessers of speculative decoding."""

DEFAULT_LOOKUP = 5
"""Number of last tokens that n-gram lookup looks up, vLLM's default."""

DTYPE_ALIASES = {"half": "float16", "float": "float32"}
"""vLLM's alternative names of dtypes."""

QUANTIZATION_ALIASES = {"none": None, "awq_marlin": "awq", "gptq_marlin": "gptq"}
"""vLLM's other names of quantizations."""

LOAD_FORMAT_ALIASES = {"hf": "auto", "safetensors": "auto"}
"""vLLM's names of the formats that ``auto`` reads anyway."""


def _as_dtype_name(dtype: object) -> object:
    """Return the name of a dtype, which may be given as PyTorch's object."""
    name = str(dtype).removeprefix("torch.")
    return DTYPE_ALIASES.get(name, name)


def _as_load_format(name: object) -> object:
    return LOAD_FORMAT_ALIASES.get(name, name) if isinstance(name, str) else name


def _as_method(name: object) -> object:
    return QUANTIZATION_ALIASES.get(name, name) if isinstance(name, str) else name


def _as_kv_dtype(name: object) -> object:
    return "fp8" if name == "fp8_e4m3" else name


def _as_model_len(length: object) -> object:
    """Return a maximum length, or None for ``auto`` or -1, with which vLLM asks for the maximum."""
    return None if length in (-1, "auto") else length


@clear_errors
@dataclass(frozen=True, config=SETTINGS)
class SchedulerConfig:
    """Limits and policy of the scheduler."""

    max_model_len: PositiveInt
    """Maximum number of tokens in a request, prompt and output together."""
    max_num_batched_tokens: PositiveInt = 2048
    """Maximum number of tokens computed per step."""
    max_num_seqs: PositiveInt = 256
    """Maximum number of requests that run at once."""
    max_admitted: PositiveInt | None = None
    """Maximum number of requests that one step admits; None: any number."""
    block_size: PositiveInt = 16
    """Number of tokens per KV block."""
    enable_prefix_caching: bool = True
    """Keep the KV blocks of finished requests, and share blocks between equal prefixes."""
    enable_chunked_prefill: bool = True
    """Compute a long prompt in several steps, alongside the decoding of other requests."""
    policy: Literal["fcfs", "priority"] = "fcfs"
    """Order of requests: by arrival (``fcfs``), or by ``priority``, the smallest number first."""
    windows: tuple[PositiveInt | None, ...] = (None,)
    """Sliding window of each group of layers that has block tables of its own; None: no window."""

    @model_validator(mode="after")
    def _limits_agree(self) -> "SchedulerConfig":
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}): each running request needs one token per step"
            )
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ValueError(
                f"without chunked prefill a prompt is computed in one step, so "
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_model_len ({self.max_model_len})"
            )
        return self

    @property
    def min_chunk(self) -> int:
        """Minimum number of tokens of a prompt's first chunk: a 64th of a step's budget.

        A smaller one would hardly bring the prompt forward, and the rest of the prompt would have
        to read it from the cache.
        """
        return max(self.max_num_batched_tokens // 64, 1)

    def max_running_after(self, num_running: int) -> int:
        """Return how many requests run at most after a step in which this many go on."""
        return min(num_running + (self.max_admitted or self.max_num_seqs), self.max_num_seqs)

    def blocks_for(self, num_tokens: int) -> int:
        """Return the number of blocks that hold ``num_tokens`` tokens of one group of layers."""
        return -(-num_tokens // self.block_size)

    def max_blocks_for(self, num_tokens: int) -> int:
        """Return the number of blocks that a request of ``num_tokens`` tokens holds at most.

        While its prompt is computed, it holds the blocks of two steps' tokens in each group, since
        a step may be planned while the one before it runs, and those that the window of the first
        of them sees.
        """
        two_steps = self.blocks_for(2 * self.max_num_batched_tokens)
        return self._blocks_over_groups(num_tokens, two_steps)

    def blocks_held_for(self, num_tokens: int) -> int:
        """Return the number of blocks that a decoding request of ``num_tokens`` tokens holds."""
        return self._blocks_over_groups(num_tokens, in_step=0)

    def longest_request(self, num_blocks: int) -> int:
        """Return the length of the longest request that fits into a pool, or ``max_model_len``."""
        lengths = range(self.max_model_len + 1)
        return bisect_right(lengths, num_blocks, key=self.max_blocks_for) - 1

    def _blocks_over_groups(self, num_tokens: int, in_step: int) -> int:
        every = self.blocks_for(num_tokens)
        return sum(
            every
            if window is None
            else min(every, num_blocks_behind(window, self.block_size) + in_step + 1)
            for window in self.windows
        )


@clear_errors
@dataclass(frozen=True, config=SETTINGS)
class KVEventsConfig:
    """Publication of what the prefix cache gains and loses, with vLLM's names."""

    enable_kv_cache_events: bool = False
    """Publish events."""
    publisher: Literal["null", "zmq"] | None = None
    """``zmq`` publishes over ZeroMQ, ``null`` not at all. Default: ``zmq``."""
    endpoint: str = "tcp://*:5557"
    """ZeroMQ endpoint of the publishing socket: bound if it has a ``*``, else connected to."""
    replay_endpoint: str | None = None
    """ZeroMQ endpoint where readers ask for batches that they missed. Default: none."""
    buffer_steps: PositiveInt = 10_000
    """Number of batches that are kept for them."""
    hwm: Annotated[int, Field(ge=0)] = 100_000
    """Number of batches that wait for a slow reader before some are dropped; 0: no limit."""
    max_queue_size: PositiveInt = 100_000
    """Accepted for vLLM's sake, and changes nothing: batches are sent at once."""
    topic: str = ""
    """First frame of each message, by which readers subscribe."""

    @property
    def publishes(self) -> bool:
        """Whether anything is published."""
        return self.enable_kv_cache_events and self.publisher != "null"


@clear_errors
@dataclass(frozen=True, config=SETTINGS)
class SpeculativeConfig:
    """Options of speculative decoding, with vLLM's names."""

    method: str | None = None
    """Guesser: ``ngram``, which looks up what followed the last tokens earlier; ``draft_model``, a
    smaller model; ``eagle3``, a head that reads the model's hidden states; or a class of your own,
    FILE.py:CLASS. Default: ``draft_model`` if ``model`` is given, else ``ngram``."""
    model: str | None = None
    """Draft model with the same vocabulary, or EAGLE-3 head of the model: a folder, .gguf file or
    hub id. Default: the one that belongs to the built-in model."""
    num_speculative_tokens: PositiveInt | None = None
    """Maximum number of guesses per request and step. Fewer are made where they don't pay."""
    prompt_lookup_max: PositiveInt | None = None
    """Number of last tokens beyond which a longer match is no better. Default: the minimum, or
    5."""
    prompt_lookup_min: PositiveInt | None = None
    """Minimum number of last tokens that must have occurred before. Default: the maximum."""

    @model_validator(mode="after")
    def _fields_agree(self) -> "SpeculativeConfig":
        if self.guesser not in GUESSERS and ":" not in self.guesser:
            raise ValueError(
                f"method should be one of {', '.join(GUESSERS)}, or name a class, as "
                f"my_file.py:MyClass, not {self.method!r}"
            )
        if self.model and not self.in_passes:
            raise ValueError(f"model needs the method draft_model or eagle3, not {self.method!r}")
        if self.num_speculative_tokens is None:
            raise ValueError("num_speculative_tokens is missing: the maximum number of guesses")
        shortest, longest = self.lookup_lengths
        if self.guesser != "ngram" and (self.prompt_lookup_min or self.prompt_lookup_max):
            raise ValueError("prompt_lookup_min and prompt_lookup_max need the method ngram")
        if shortest > longest:
            raise ValueError(
                f"prompt_lookup_min ({shortest}) must be at most prompt_lookup_max ({longest})"
            )
        return self

    @property
    def guesser(self) -> str:
        """Method to use."""
        return self.method or ("draft_model" if self.model else "ngram")

    @property
    def in_passes(self) -> bool:
        """Whether each guess takes a pass of a network."""
        return self.guesser in ("draft_model", "eagle3")

    @property
    def lookup_lengths(self) -> tuple[int, int]:
        """Minimum and maximum number of last tokens to look up."""
        given = self.prompt_lookup_max or self.prompt_lookup_min or DEFAULT_LOOKUP
        return self.prompt_lookup_min or given, self.prompt_lookup_max or given

    @property
    def max_guesses(self) -> int:
        """Maximum number of guesses of a request in a step."""
        return self.num_speculative_tokens or 0


@accepts(ENGINE, none_is_default=True)
@clear_errors
@dataclass(frozen=True, config=SETTINGS)
class EngineConfig:
    """Options of the engine, with vLLM's names.

    None leaves a choice to the model or to the machine. vLLM's other arguments are accepted at
    values that change nothing here, and refused at others: see ``vllm_arguments``.
    """

    model: str
    """Folder with a checkpoint in Hugging Face's format, .gguf file, model fetched with
    ``minimal-vllm fetch``, or id of a model on the hub."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer. Default: the model's own."""
    skip_tokenizer_init: bool = False
    """Load no tokenizer: prompts are token ids, and outputs have no text."""
    revision: str | None = None
    """Branch, tag or commit to load from the hub."""
    download_dir: str | None = None
    """Folder for models downloaded from the hub. Default: the hub's cache."""
    load_format: Annotated[Literal["auto", "dummy"], BeforeValidator(_as_load_format)] = "auto"
    """Format of the weights: ``auto`` reads the checkpoint, ``dummy`` makes random weights of the
    model's shape, for measurements."""
    hf_overrides: dict[str, Any] | None = None
    """Entries that replace those of the model's config.json."""
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], BeforeValidator(_as_dtype_name)
    ] = "auto"
    """Data type of weights and activations. ``auto``: the checkpoint's on a GPU, float32 on a
    CPU."""
    quantization: Annotated[
        Literal["fp8", "int8", "compressed-tensors", "awq", "gptq"] | None,
        BeforeValidator(_as_method),
    ] = None
    """Quantization of the weights. ``fp8`` and, on a CPU, ``int8`` quantize a 16-bit checkpoint or
    a GGUF file while it is loaded. A checkpoint that is already quantized needs no option. Default:
    as the checkpoint is; ``int8`` for a GGUF file in Q8_0 or Q4_0 on a CPU, unless ``dtype`` is
    given."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to run on. ``auto``: the GPU if there is one."""
    tensor_parallel_size: PositiveInt = 1
    """Number of processes that compute the model together, each with its share of the weights and
    of the KV cache. On GPUs, each has one."""
    attention_backend: Part = "auto"
    """Implementation of attention: ``reference`` (slow; beside it, all modules are plain),
    ``tiled`` (CPU), ``triton`` (GPU), or a class of your own, FILE.py:CLASS."""
    max_model_len: Annotated[PositiveInt | None, BeforeValidator(_as_model_len)] = None
    """Maximum number of tokens in a request, prompt and output together. Default: the model's
    limit, or what the KV cache holds if that is less."""
    kv_cache_dtype: Annotated[Literal["auto", "fp8"], BeforeValidator(_as_kv_dtype)] = "auto"
    """Data type of the KV cache: the model's (``auto``), or ``fp8`` (e4m3), one byte per number."""
    block_size: PositiveInt = 16
    """Number of tokens per KV block."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """Fraction of the device's memory that this process may use, weights included. Default: 0.9 of
    a GPU, 0.5 of the RAM, which other programs need too."""
    num_gpu_blocks_override: PositiveInt | None = None
    """Number of KV blocks, overriding the estimate from the device's memory."""
    eviction_policy: Part = "lru"
    """Cached block to evict first: the least recently used (``lru``), the least frequently used
    (``lfu``) or the oldest (``fifo``); or a class of your own, FILE.py:CLASS."""
    block_pool: Part | None = None
    """Class that replaces the block pool, FILE.py:CLASS."""
    scheduler: Part | None = None
    """Class that replaces the scheduler, FILE.py:CLASS."""
    sampler: Part | None = None
    """Class that replaces the sampler, FILE.py:CLASS."""
    max_num_batched_tokens: PositiveInt | None = None
    """Maximum number of tokens computed per step. Default: 2,048 on a CPU, 8,320 on a GPU, 16,640
    offline on a GPU with 70 GiB or more."""
    max_num_seqs: PositiveInt = 256
    """Maximum number of requests that run at once."""
    enable_prefix_caching: bool = True
    """Keep the KV blocks of finished requests, and share blocks between equal prefixes."""
    kv_events_config: KVEventsConfig | None = None
    """Publish over ZeroMQ which blocks the prefix cache gains and loses, in vLLM's format. Default:
    no."""
    enable_chunked_prefill: bool = True
    """Compute a long prompt in several steps, alongside the decoding of other requests."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """Order of requests: by arrival (``fcfs``), or by ``priority``, the smallest number first."""
    max_logprobs: Annotated[int, Field(ge=-1)] = 20
    """Maximum number of top tokens whose log-probabilities a request may ask for; -1: no limit."""
    generation_config: Literal["auto", "vllm"] = "auto"
    """Source of the default sampling parameters: the model's generation_config.json (``auto``), or
    the engine's own defaults (``vllm``)."""
    override_generation_config: dict[str, Any] | None = None
    """Default sampling parameters that replace those of ``generation_config``, under
    generation_config.json's names."""
    chat_template: str | None = None
    """Chat template, or the file that holds it. Default: the model's own."""
    enforce_eager: bool = False
    """Launch each kernel separately instead of replaying CUDA graphs."""
    async_scheduling: bool | None = None
    """Plan and launch each step while the previous one still runs. Default: on with the triton
    backend and the built-in scheduler and sampler."""
    cascade_attention: bool = True
    """Read a prefix that running requests share once per step instead of once per request. Only
    in CUDA graphs."""
    speculative_config: SpeculativeConfig | None = None
    """Speculative decoding: guess several tokens, and compute them in one step. The output stays
    the same. Example: {"method": "ngram", "num_speculative_tokens": 5}."""
    seed: int = 0
    """Seed from which requests without a seed get theirs, in the order of their arrival."""

    @model_validator(mode="after")
    def _scheduler_can_guess(self) -> "EngineConfig":
        if self.speculative_config and self.scheduler:
            raise ValueError("speculative_config needs the built-in scheduler: leave out scheduler")
        return self

    @field_validator("attention_backend", "eviction_policy", "block_pool", "scheduler", "sampler")
    @classmethod
    def _part_is_named(cls, part: Part | None, field: ValidationInfo) -> Part | None:
        names = BUILT_IN.get(field.field_name or "", ())
        if isinstance(part, str) and ":" not in part and part not in names:
            known = f"be one of {', '.join(names)}, or " if names else ""
            raise ValueError(f"should {known}name a class, as my_file.py:MyClass, not {part!r}")
        return part

    @model_validator(mode="after")
    def _events_have_a_source(self) -> "EngineConfig":
        if self.kv_events_config is None or not self.kv_events_config.publishes:
            return self
        if not self.enable_prefix_caching:
            raise ValueError("kv_events_config needs enable_prefix_caching: no block is ever found")
        if self.block_pool or self.scheduler:
            raise ValueError(
                "kv_events_config needs the built-in block_pool and scheduler, which tell what "
                "they do"
            )
        return self
