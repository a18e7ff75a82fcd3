"""Fields of OpenAI, vLLM and SGLang that have no effect on this server, or none at their defaults.

Clients, and routers in front of servers, send many of them with every request. A field's
declaration says how it is treated; see ``api_model``.
"""

from typing import Annotated, Any

from pydantic import Field

from minimal_vllm.server.api_model import ApiModel, Bookkeeping, OnlyDefault


class OtherFields(ApiModel):
    """Fields without effect of both endpoints."""

    # ---- OpenAI's ----
    metadata: Bookkeeping = None
    """Tags for the client's own use."""
    store: Bookkeeping = None
    """Keep the answer on OpenAI's servers; here nothing is kept."""
    service_tier: Bookkeeping = None
    """OpenAI's price class."""
    safety_identifier: Bookkeeping = None
    """The end user, for OpenAI's policies."""
    prompt_cache_key: Bookkeeping = None
    """Hint for OpenAI's prompt cache; here every prompt is cached."""
    prompt_cache_retention: Bookkeeping = None
    """Time that OpenAI keeps a cached prompt."""
    prompt_cache_options: Bookkeeping = None
    """Settings of OpenAI's prompt cache."""
    best_of: OnlyDefault[int] = 1
    modalities: Annotated[OnlyDefault[list[str]], Field(default=["text"])]

    # ---- vLLM's ----
    spaces_between_special_tokens: Bookkeeping = None
    """Spacing of slow tokenizers; this server uses fast ones, which don't have it."""
    use_beam_search: OnlyDefault[bool] = False
    length_penalty: OnlyDefault[float] = 1.0
    early_stopping: OnlyDefault[bool] = False
    truncate_prompt_tokens: OnlyDefault[int] = None
    truncation_side: OnlyDefault[str] = None
    logits_processors: OnlyDefault[list[Any]] = None
    prompt_embeds: OnlyDefault[str] = None
    kv_transfer_params: OnlyDefault[dict[str, Any]] = None
    vllm_xargs: OnlyDefault[dict[str, Any]] = None
    repetition_detection: OnlyDefault[dict[str, Any]] = None
    max_repetition_pattern_size: OnlyDefault[int] = 0
    min_repetition_pattern_size: OnlyDefault[int] = 0
    repetition_min_count: OnlyDefault[int] = 0
    thinking_token_budget: OnlyDefault[int] = None
    guided_json: OnlyDefault[dict[str, Any]] = None
    guided_regex: OnlyDefault[str] = None
    guided_choice: OnlyDefault[list[str]] = None
    guided_grammar: OnlyDefault[str] = None
    guided_decoding_backend: OnlyDefault[str] = None
    guided_whitespace_pattern: OnlyDefault[str] = None

    # ---- SGLang's, and its router's ----
    rid: Bookkeeping = None
    """SGLang's request id."""
    log_metrics: Bookkeeping = None
    """Count the request in SGLang's metrics."""
    regex: OnlyDefault[str] = None
    ebnf: OnlyDefault[str] = None
    json_schema: OnlyDefault[str] = None
    no_stop_trim: OnlyDefault[bool] = False
    sampling_seed: OnlyDefault[int] = None
    lora_path: OnlyDefault[str] = None
    session_params: OnlyDefault[dict[str, Any]] = None
    return_hidden_states: OnlyDefault[bool] = False
    return_routed_experts: OnlyDefault[bool] = False
    return_cached_tokens_details: OnlyDefault[bool] = False
    custom_logit_processor: OnlyDefault[str] = None
    custom_params: OnlyDefault[dict[str, Any]] = None
    bootstrap_host: OnlyDefault[str] = None
    bootstrap_port: OnlyDefault[int] = None
    bootstrap_room: OnlyDefault[int] = None
    data_parallel_rank: OnlyDefault[int] = None


class OtherCompletionFields(OtherFields):
    """Fields without effect of ``/v1/completions``."""

    suffix: OnlyDefault[str] = None
    """Text after the completion."""
    tools: OnlyDefault[list[Any]] = None


class OtherChatFields(OtherFields):
    """Fields without effect of ``/v1/chat/completions``."""

    verbosity: Bookkeeping = None
    """Length of the answers of OpenAI's own models."""
    audio: OnlyDefault[dict[str, Any]] = None
    prediction: OnlyDefault[dict[str, Any]] = None
    moderation: OnlyDefault[dict[str, Any]] = None
    web_search_options: OnlyDefault[dict[str, Any]] = None
    functions: OnlyDefault[list[Any]] = None
    """Older form of ``tools``."""
    function_call: OnlyDefault[str] = "none"
    """Older form of ``tool_choice``."""
    echo: OnlyDefault[bool] = False
    """Begin the answer with the last message."""
    include_reasoning: OnlyDefault[bool] = True
    mm_processor_kwargs: OnlyDefault[dict[str, Any]] = None
    media_io_kwargs: OnlyDefault[dict[str, Any]] = None
    separate_reasoning: OnlyDefault[bool] = True
    """Tell reasoning apart from the answer."""
    stream_reasoning: OnlyDefault[bool] = True
    """Stream the reasoning, too."""
