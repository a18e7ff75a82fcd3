"""Arguments that vLLM has and this engine has not, with the values at which they change nothing.

Scripts written for vLLM pass many arguments at their defaults. Such a value is accepted and
dropped; any other value is refused with a sentence that says what is supported instead. The names
and defaults are those of ``EngineArgs``, ``SamplingParams`` and ``FrontendArgs`` in vLLM 0.33, and
some of earlier versions.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import wraps
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

T = TypeVar("T")


class _Anything(Container[object]):
    """A container of all values."""

    def __contains__(self, value: object) -> bool:
        return True


ANYTHING = _Anything()
"""For an argument that changes nothing at any value, since what it configures does not exist."""

ON_OR_OFF = (False, True)
"""Values of a flag that changes nothing."""

OFF = (False,)


@dataclass(frozen=True)
class Unsupported:
    """Arguments of one feature that is not supported.

    Attributes:
        instead: what is supported, as the end of an error's sentence.
        neutral: the values of each argument that change nothing. None and empty containers change
            nothing for any argument.
    """

    instead: str
    neutral: Mapping[str, Container[object]] = field(default_factory=dict)

    def check(self, name: str, value: object) -> None:
        """Raise a ValueError if ``value`` would change something."""
        is_empty = isinstance(value, dict | list | set | tuple | str) and not any(value)
        if value is None or is_empty or _is_among(value, self.neutral[name]):
            return
        raise ValueError(f"{name}={value!r} is not supported: {self.instead}")


def takes_no_value(neutral: Container[object]) -> bool:
    """Return whether an argument with these neutral values is a flag on the command line."""
    return isinstance(neutral, tuple) and {type(each) for each in neutral} == {bool}


def _is_among(value: object, values: Container[object]) -> bool:
    try:
        return value in values
    except Exception:  # an array, say, which can't be compared
        return False


def _by_name(*groups: Unsupported) -> dict[str, Unsupported]:
    return {name: group for group in groups for name in group.neutral}


ENGINE = _by_name(
    Unsupported(
        "one process runs the model, on one device",
        {
            "tensor_parallel_size": (1,),
            "pipeline_parallel_size": (1,),
            "data_parallel_size": (1,),
            "data_parallel_rank": (0,),
            "data_parallel_start_rank": (0,),
            "data_parallel_size_local": (1,),
            "data_parallel_address": (),
            "data_parallel_rpc_port": (),
            "data_parallel_hybrid_lb": OFF,
            "data_parallel_external_lb": OFF,
            "data_parallel_multi_port_external_lb": OFF,
            "data_parallel_backend": ANYTHING,
            "prefill_context_parallel_size": (1,),
            "decode_context_parallel_size": (1,),
            "dcp_comm_backend": ANYTHING,
            "dcp_q_replicate": ON_OR_OFF,
            "dcp_kv_cache_interleave_size": ANYTHING,
            "cp_kv_cache_interleave_size": ANYTHING,
            "distributed_executor_backend": ("uni", "mp"),
            "nnodes": (1,),
            "node_rank": (0,),
            "master_addr": ANYTHING,
            "master_port": ANYTHING,
            "distributed_timeout_seconds": ANYTHING,
            "cpu_distributed_timeout_seconds": ANYTHING,
            "disable_custom_all_reduce": ON_OR_OFF,
            "disable_nccl_for_dp_synchronization": ON_OR_OFF,
            "dp_sync_interval": ANYTHING,
            "numa_bind": OFF,
            "numa_bind_nodes": (),
            "numa_bind_cpus": (),
            "device_ids": ([0],),
            "enable_batch_sharded_sampling": OFF,
            "enable_hc_sp": OFF,
            "enable_dbo": OFF,
            "ubatch_size": (0,),
            "dbo_decode_token_threshold": ANYTHING,
            "dbo_prefill_token_threshold": ANYTHING,
            "ray_workers_use_nsight": OFF,
            "worker_cls": ("auto",),
            "worker_extension_cls": (),
            "enable_fault_tolerance": OFF,
            "fault_tolerance_config": (),
            "enable_nccl_comm_suspend": ON_OR_OFF,
            "enable_shm_tensor_arena": OFF,
            "disable_frontend_multiprocessing": ON_OR_OFF,
        },
    ),
    Unsupported(
        "the models here have no mixture of experts",
        {
            "enable_expert_parallel": OFF,
            "enable_ep_weight_filter": ON_OR_OFF,
            "enable_elastic_ep": OFF,
            "elastic_ep_max_dp_size": ANYTHING,
            "enable_eplb": OFF,
            "eplb_config": ANYTHING,
            "expert_placement_strategy": ANYTHING,
            "all2all_backend": ANYTHING,
            "moe_backend": ANYTHING,
            "enable_return_routed_experts": OFF,
        },
    ),
    Unsupported(
        "LoRA adapters can't be loaded; merge the adapter into the checkpoint",
        {
            "enable_lora": OFF,
            "max_loras": ANYTHING,
            "max_lora_rank": ANYTHING,
            "max_cpu_loras": ANYTHING,
            "fully_sharded_loras": ON_OR_OFF,
            "lora_dtype": ANYTHING,
            "lora_extra_vocab_size": ANYTHING,
            "lora_target_modules": (),
            "default_mm_loras": (),
            "enable_tower_connector_lora": OFF,
            "specialize_active_lora": ON_OR_OFF,
            "enable_mixed_moe_lora_format": OFF,
            "enable_moe_shared_loras": OFF,
            "max_lora_cls_labels": ANYTHING,
        },
    ),
    Unsupported(
        "weights are computed with as they are stored, or in the dtype given by dtype; leave it "
        "out, or set it to None",
        {
            "quantization": ("none",),
            "quantization_config": (),
            "allow_deprecated_quantization": ON_OR_OFF,
            "linear_backend": ("auto",),
        },
    ),
    Unsupported(
        "the KV cache holds the model's dtype, on the model's device; use kv_cache_dtype='auto', "
        "and size it with gpu_memory_utilization or num_gpu_blocks_override",
        {
            "kv_cache_dtype": ("auto",),
            "kv_cache_dtype_skip_layers": (),
            "calculate_kv_scales": OFF,
            "kv_cache_memory_bytes": (),
            "kv_sharing_fast_prefill": OFF,
            "kv_offloading_size": (0,),
            "kv_offloading_backend": ANYTHING,
            "kv_transfer_config": (),
            "kv_events_config": (),
            "ec_transfer_config": (),
            "ec_manager_config": (),
            "swa_bounded_replay": ON_OR_OFF,
            "prefix_caching_hash_algo": ("sha256", "sha256_cbor", "builtin"),
            "prefix_cache_retention_interval": (0,),
            "prefix_match_unit": (),
        },
    ),
    Unsupported(
        "all weights stay on the device; choose a smaller model or dtype",
        {
            "cpu_offload_gb": (0,),
            "cpu_offload_params": (),
            "offload_backend": ANYTHING,
            "offload_group_size": (0,),
            "offload_num_in_group": ANYTHING,
            "offload_prefetch_step": ANYTHING,
            "offload_params": ANYTHING,
            "swap_space": ANYTHING,
            "enable_sleep_mode": OFF,
            "sleep_mode_backend": ANYTHING,
            "sleep_mode_offload_cudagraph": ON_OR_OFF,
            "sleep_preserve_parameter_names": ANYTHING,
            "enable_cumem_allocator": ON_OR_OFF,
            "weight_transfer_config": (),
        },
    ),
    Unsupported(
        "every token is computed by the model itself, without speculative decoding",
        {
            "speculative_config": (),
            "spec_method": (),
            "spec_model": (),
            "spec_tokens": (0,),
            "num_speculative_tokens": (0,),
            "speculative_model": (),
            "diffusion_config": (),
        },
    ),
    Unsupported(
        "models read text and generate text",
        {
            "runner": ("auto", "generate"),
            "convert": ("auto", "none"),
            "task": ("auto", "generate"),
            "pooler_config": (),
            "enable_prompt_embeds": OFF,
            "enable_mm_embeds": OFF,
            "language_model_only": ON_OR_OFF,
            "limit_mm_per_prompt": ANYTHING,
            "interleave_mm_strings": ON_OR_OFF,
            "media_io_kwargs": ANYTHING,
            "mm_processor_kwargs": ANYTHING,
            "mm_processor_cache_gb": ANYTHING,
            "mm_processor_cache_type": ANYTHING,
            "mm_processor_device": ANYTHING,
            "mm_hasher_algorithm": ANYTHING,
            "mm_shm_cache_max_object_size_mb": ANYTHING,
            "mm_encoder_only": OFF,
            "mm_encoder_tp_mode": ANYTHING,
            "mm_encoder_attn_backend": ANYTHING,
            "mm_encoder_attn_dtype": ANYTHING,
            "mm_encoder_fp8_scale_path": ANYTHING,
            "mm_encoder_fp8_scale_save_path": (),
            "mm_encoder_fp8_scale_save_margin": ANYTHING,
            "mm_tensor_ipc": ANYTHING,
            "mm_ipc_gpu_memory_gb": ANYTHING,
            "mm_device_do_normalize": ON_OR_OFF,
            "skip_mm_profiling": ON_OR_OFF,
            "disable_mm_preprocessor_cache": ON_OR_OFF,
            "video_pruning_rate": ANYTHING,
            "video_pruning_method": ANYTHING,
            "allowed_local_media_path": ANYTHING,
            "allowed_media_domains": ANYTHING,
            "disable_chunked_mm_input": ON_OR_OFF,
            "io_processor_plugin": (),
            "renderer_num_workers": ANYTHING,
        },
    ),
    Unsupported(
        "a checkpoint is read in Hugging Face's format, with its own tokenizer.json",
        {
            "trust_remote_code": ON_OR_OFF,
            "model_weights": (),
            "model_impl": ("auto", "vllm"),
            "model_class_overrides": (),
            "config_format": ("auto", "hf"),
            "hf_config_path": (),
            "code_revision": (),
            "tokenizer_mode": ("auto", "hf"),
            "tokenizer_revision": (),
            "model_loader_extra_config": (),
            "ignore_patterns": ANYTHING,
            "safetensors_load_strategy": ANYTHING,
            "safetensors_prefetch_num_threads": ANYTHING,
            "safetensors_prefetch_block_size": ANYTHING,
            "max_parallel_loading_workers": ANYTHING,
            "pt_load_map_location": ANYTHING,
            "use_tqdm_on_load": (True,),
        },
    ),
    Unsupported(
        "the hub's token is read from the environment variable HF_TOKEN, or from what "
        "'hf auth login' has stored",
        {"hf_token": (True, False, "true", "false")},
    ),
    Unsupported(
        "override the model's config.json with hf_overrides",
        {"rope_scaling": (), "rope_theta": ()},
    ),
    Unsupported("set cascade_attention=False", {"disable_cascade_attn": OFF}),
    Unsupported("give a class with scheduler", {"scheduler_cls": ()}),
    Unsupported("give a sampler of your own with sampler", {"logits_processors": ()}),
    Unsupported(
        "log-probabilities are those of the model's logits, before temperature and penalties",
        {"logprobs_mode": ("raw_logprobs",), "return_sampling_mask": OFF},
    ),
    Unsupported(
        "steps are limited by max_num_batched_tokens and max_num_seqs alone",
        {
            "max_num_scheduled_tokens": (),
            "max_num_active_seqs": (),
            "max_num_queued_reqs": (),
            "max_num_queued_tokens": (),
            "max_num_partial_prefills": (1,),
            "max_long_partial_prefills": (1,),
            "long_prefill_token_threshold": (0,),
            "long_prefill_token_threshold_adaptive": OFF,
            "num_scheduler_steps": (1,),
            "multi_step_stream_outputs": ON_OR_OFF,
            "num_lookahead_slots": (0,),
            "scheduler_delay_factor": (0,),
            "scheduler_reserve_full_isl": ON_OR_OFF,
            "prefill_schedule_interval": (1,),
            "watermark": (0,),
            "preemption_mode": ("recompute",),
            "stream_interval": (1,),
            "disable_sliding_window": OFF,
            "disable_hybrid_kv_cache_manager": ON_OR_OFF,
            "use_v2_block_manager": ON_OR_OFF,
            "disable_async_output_proc": ON_OR_OFF,
        },
    ),
    Unsupported(
        "kernels are chosen with attention_backend, and nothing is compiled by torch.compile",
        {
            "compilation_config": ANYTHING,
            "optimization_level": ANYTHING,
            "performance_mode": ("balanced",),
            "cudagraph_capture_sizes": ANYTHING,
            "max_cudagraph_capture_size": ANYTHING,
            "max_seq_len_to_capture": ANYTHING,
            "attention_config": (),
            "kernel_config": (),
            "ir_op_priority": (),
            "sparse_indexer_topk_backend": ANYTHING,
            "enable_flashinfer_autotune": ON_OR_OFF,
            "monokernel": OFF,
            "use_fp64_gumbel": OFF,
            "gdn_prefill_backend": ANYTHING,
            "kda_prefill_backend": ANYTHING,
            "kda_decode_backend": ANYTHING,
            "engram_config": (),
            "mamba_config": ANYTHING,
            "mamba_cache_dtype": ANYTHING,
            "mamba_ssm_cache_dtype": ANYTHING,
            "mamba_block_size": ANYTHING,
            "mamba_cache_mode": ANYTHING,
            "mamba_backend": ANYTHING,
            "mamba_ssu_algorithm": ANYTHING,
            "enable_mamba_shared_prefix_checkpoint": ON_OR_OFF,
            "enable_mamba_cache_stochastic_rounding": ON_OR_OFF,
            "mamba_cache_philox_rounds": ANYTHING,
            "replayssm_buffer_len": ANYTHING,
            "use_replayssm": ON_OR_OFF,
        },
    ),
    Unsupported(
        "grammars are compiled by llguidance, and set for each request with structured_outputs",
        {
            "structured_outputs_config": (),
            "guided_decoding_backend": ("auto", "guidance"),
            "guided_decoding_disable_fallback": ON_OR_OFF,
            "guided_decoding_disable_any_whitespace": OFF,
            "reasoning_parser": (),
            "reasoning_parser_plugin": (),
            "reasoning_config": (),
        },
    ),
    Unsupported(
        "what the engine does is recorded with --trace, or by observers",
        {
            "disable_log_stats": ON_OR_OFF,
            "disable_log_requests": (True,),
            "aggregate_engine_logging": ON_OR_OFF,
            "show_hidden_metrics_for_version": (),
            "otlp_traces_endpoint": (),
            "collect_detailed_traces": (),
            "per_request_spec_decode_metrics": ANYTHING,
            "kv_cache_metrics": OFF,
            "kv_cache_metrics_sample": ANYTHING,
            "custom_histogram_buckets": (),
            "cudagraph_metrics": OFF,
            "enable_layerwise_nvtx_tracing": OFF,
            "enable_mfu_metrics": OFF,
            "enable_logging_iteration_details": OFF,
            "enable_mm_processor_stats": ON_OR_OFF,
            "enable_trace_replay": OFF,
            "jit_monitor_mode": ANYTHING,
            "jit_monitor_verbose": ON_OR_OFF,
            "profiler_config": (),
            "logging_config": (),
            "log_level": (),
            "log_config_file": (),
            "watchdog_config": (),
            "aux_output_config": (),
            "watermark_config": (),
            "additional_config": (),
            "fail_on_environ_validation": ON_OR_OFF,
        },
    ),
)
"""By argument of ``EngineArgs``."""

OFFLINE = _by_name(
    Unsupported("clients have no name for an offline model", {"served_model_name": ANYTHING}),
    Unsupported("the engine generates from tokens and text alike", {"tokens_only": OFF}),
    Unsupported("an offline engine ends at once", {"shutdown_timeout": (0,)}),
)
"""By argument of vLLM's ``LLM``: options that only the server has here."""

SAMPLING = _by_name(
    Unsupported(
        "completions are sampled, without beam search; set n",
        {
            "best_of": (1,),
            "use_beam_search": OFF,
            "length_penalty": (1,),
            "early_stopping": OFF,
        },
    ),
    Unsupported("use structured_outputs", {"guided_decoding": ()}),
    Unsupported("use logit_bias, or a sampler of your own", {"logits_processors": ()}),
    Unsupported("no extension reads further arguments", {"extra_args": ()}),
    Unsupported("shorten the prompt yourself", {"truncate_prompt_tokens": ()}),
    Unsupported(
        "log-probabilities are a list with one dictionary per token, of the top tokens",
        {
            "flat_logprobs": OFF,
            "logprob_token_ids": (),
            "prompt_logprob_token_ids": (),
            "prompt_logprob_start": (0,),
        },
    ),
    Unsupported(
        "set cache_salt in the prompt to compute it without the cache of others",
        {"skip_reading_prefix_cache": OFF},
    ),
    Unsupported("limit the output with max_tokens", {"thinking_token_budget": ()}),
    Unsupported("use frequency_penalty or repetition_penalty", {"repetition_detection": ()}),
    Unsupported("outputs carry no watermark", {"watermarking": OFF}),
    Unsupported(
        "the models here have no mixture of experts", {"routed_experts_prompt_start": (0,)}
    ),
    Unsupported("tokens are sampled, not replayed", {"trace_decode_token_ids": ()}),
    Unsupported(
        "text is decoded as Hugging Face's fast tokenizers do",
        {"spaces_between_special_tokens": ON_OR_OFF},
    ),
    Unsupported(
        "LLM returns outputs once they are finished, and the server streams them by itself",
        {
            "output_kind": ANYTHING,
            "stream_interval": (1,),
            "skip_clone": ON_OR_OFF,
            "output_text_buffer_length": ANYTHING,
        },
    ),
)
"""By argument of ``SamplingParams``."""

REQUEST = _by_name(
    Unsupported(
        "LoRA adapters can't be loaded; merge the adapter into the checkpoint",
        {"lora_request": ()},
    ),
    Unsupported("encode the prompt yourself, and give token ids", {"tokenization_kwargs": ()}),
    Unsupported("models read text only", {"mm_processor_kwargs": ()}),
    Unsupported(
        "a text template gets text, any other the list of parts",
        {"chat_template_content_format": ("auto",)},
    ),
)
"""By argument of ``LLM.generate`` and ``LLM.chat``."""

SERVER = _by_name(
    Unsupported(
        "LoRA adapters can't be loaded; merge the adapter into the checkpoint",
        {"lora_modules": (), "prompt_adapters": ()},
    ),
    Unsupported(
        "one process serves on one host and port",
        {
            "api_server_count": (1,),
            "headless": OFF,
            "uds": (),
            "grpc_port": (),
            "tokens_only": OFF,
            "enable_scale_out": OFF,
            "data_parallel_supervisor_port": ANYTHING,
        },
    ),
    Unsupported(
        "https is set up with ssl_certfile and ssl_keyfile",
        {
            "ssl_ca_certs": (),
            "ssl_cert_reqs": (0,),
            "ssl_ciphers": (),
            "enable_ssl_refresh": OFF,
        },
    ),
    Unsupported("put a proxy in front of the server", {"middleware": ()}),
    Unsupported(
        "the limits are --max-body-bytes and those of h11",
        {"h11_max_incomplete_event_size": (), "h11_max_header_count": ()},
    ),
    Unsupported(
        "each request is one line of the log; --enable-log-requests adds its parameters",
        {
            "disable_uvicorn_access_log": ON_OR_OFF,
            "disable_access_log_for_endpoints": (),
            "max_log_len": (),
            "enable_log_outputs": OFF,
            "enable_log_deltas": ON_OR_OFF,
            "log_error_stack": OFF,
        },
    ),
    Unsupported(
        "message contents are given to the chat template in the form that it reads",
        {"chat_template_content_format": ("auto",)},
    ),
    Unsupported("answers are the assistant's", {"response_role": ("assistant",)}),
    Unsupported(
        "the built-in formats are those of --tool-call-parser",
        {
            "tool_parser_plugin": (),
            "tool_server": (),
            "tool_strict_level": ("auto",),
            "exclude_tools_when_tool_choice_none": OFF,
        },
    ),
    Unsupported("the documentation is always served, at /docs", {"disable_fastapi_docs": OFF}),
    Unsupported("the models read text only", {"trust_request_mm_kwargs": OFF}),
    Unsupported("ask for usage with stream_options", {"enable_force_include_usage": OFF}),
    Unsupported("use a client without a read timeout", {"sse_keep_alive_interval": (0,)}),
    Unsupported("set it in the request", {"reasoning_effort_map": ()}),
)
"""By argument of ``FrontendArgs``."""


def drop_neutral(
    given: Mapping[str, Any], unsupported: Mapping[str, Unsupported]
) -> dict[str, Any]:
    """Return the arguments that are left once the unsupported ones are dropped.

    Raises:
        ValueError: an unsupported argument has a value that would change something.
    """
    for name in given.keys() & unsupported.keys():
        unsupported[name].check(name, given[name])
    return {name: value for name, value in given.items() if name not in unsupported}


def check_unsupported(
    function: str, given: Mapping[str, Any], unsupported: Mapping[str, Unsupported]
) -> None:
    """Check that a function's further arguments change nothing.

    Raises:
        ValueError: one would change something.
        TypeError: one is not an argument of vLLM's either.
    """
    unknown = drop_neutral(given, unsupported)
    if unknown:
        raise TypeError(f"{function}() got an unexpected keyword argument {min(unknown)!r}")


def accepts(
    unsupported: Mapping[str, Unsupported], *, none_is_default: bool = False
) -> Callable[[type[T]], type[T]]:
    """Decorate a dataclass so that it can be made with vLLM's arguments too.

    Args:
        unsupported: arguments that are no fields.
        none_is_default: let None stand for the default of fields that can't be None.
    """

    def decorate(settings: type[T]) -> type[T]:
        assert is_dataclass(settings)  # noqa: S101 - the decorator below this one makes it so
        make = settings.__init__
        never_none = _fields_without_none(settings) if none_is_default else frozenset()

        @wraps(make)
        def make_with(self: T, *args: Any, **kwargs: Any) -> None:
            left = drop_neutral(kwargs, unsupported)
            defaulted = {key for key, value in left.items() if value is None} & never_none
            make(self, *args, **{key: left[key] for key in left if key not in defaulted})

        setattr(settings, "__init__", make_with)  # noqa: B010 - mypy knows of no such assignment
        return settings

    return decorate


def _fields_without_none(settings: Any) -> frozenset[str]:
    hints = get_type_hints(settings)
    return frozenset(
        each.name for each in fields(settings) if NoneType not in get_args(hints[each.name])
    )
