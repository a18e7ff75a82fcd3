"""Fields of OpenAI, vLLM and SGLang that have no effect on this server, or none at their defaults.

Clients, and routers in front of servers, send many of them with every request. A field's
declaration says how it is treated; see ``api_model``.
"""

from typing import Annotated, Any

from pydantic import Field

from minimal_vllm.server.api_model import ApiModel, Bookkeeping, OnlyDefault, refuse_with

USE_N = refuse_with("not supported here: every completion is returned, so set n")
NO_BEAMS = refuse_with(
    "not supported here: completions are sampled (beam search is in Python: LLM.beam_search)"
)
USE_PROMPT_LOGPROBS = refuse_with("not supported here: set prompt_logprobs")
USE_BIAS = refuse_with("not supported here: use logit_bias, bad_words or allowed_token_ids")
USE_STRUCTURED = refuse_with("not supported here: use response_format or structured_outputs")
USE_SEED = refuse_with("not supported here: use seed")
USE_TOOLS = refuse_with("not supported here: use tools and tool_choice")
ONE_ENGINE = refuse_with("not supported here: one engine computes prompt and completion")


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
    best_of: Annotated[OnlyDefault[int], USE_N] = 1
    modalities: Annotated[OnlyDefault[list[str]], Field(default=["text"])]

    # ---- vLLM's ----
    spaces_between_special_tokens: Bookkeeping = None
    """Spacing of slow tokenizers; this server uses fast ones, which don't have it."""
    session_id: Bookkeeping = None
    """Name of the conversation, by which routers choose a server."""
    use_beam_search: Annotated[OnlyDefault[bool], NO_BEAMS] = False
    length_penalty: Annotated[OnlyDefault[float], NO_BEAMS] = 1.0
    early_stopping: Annotated[OnlyDefault[bool], NO_BEAMS] = False
    prompt_logprob_token_ids: Annotated[OnlyDefault[list[int]], USE_PROMPT_LOGPROBS] = None
    logits_processors: Annotated[OnlyDefault[list[Any]], USE_BIAS] = None
    prompt_embeds: OnlyDefault[str] = None
    kv_transfer_params: Annotated[OnlyDefault[dict[str, Any]], ONE_ENGINE] = None
    ec_transfer_params: Annotated[OnlyDefault[dict[str, Any]], ONE_ENGINE] = None
    vllm_xargs: OnlyDefault[dict[str, Any]] = None
    watermarking: OnlyDefault[bool] = False
    stream_interval: OnlyDefault[int] = 1
    routed_experts_prompt_start: OnlyDefault[int] = 0
    return_token_offsets: OnlyDefault[bool] = False
    return_prompt_text: OnlyDefault[bool] = False
    return_mm_kwargs: Bookkeeping = None
    """Contents of answers about images, of which this server has none."""
    repetition_detection: OnlyDefault[dict[str, Any]] = None
    max_repetition_pattern_size: OnlyDefault[int] = 0
    min_repetition_pattern_size: OnlyDefault[int] = 0
    repetition_min_count: OnlyDefault[int] = 0
    thinking_token_budget: OnlyDefault[int] = None
    guided_json: Annotated[OnlyDefault[dict[str, Any]], USE_STRUCTURED] = None
    guided_regex: Annotated[OnlyDefault[str], USE_STRUCTURED] = None
    guided_choice: Annotated[OnlyDefault[list[str]], USE_STRUCTURED] = None
    guided_grammar: Annotated[OnlyDefault[str], USE_STRUCTURED] = None
    guided_decoding_backend: OnlyDefault[str] = None
    guided_whitespace_pattern: OnlyDefault[str] = None

    # ---- SGLang's, and its router's ----
    rid: Bookkeeping = None
    """SGLang's request id."""
    log_metrics: Bookkeeping = None
    """Count the request in SGLang's metrics."""
    regex: Annotated[OnlyDefault[str], USE_STRUCTURED] = None
    ebnf: Annotated[OnlyDefault[str], USE_STRUCTURED] = None
    json_schema: Annotated[OnlyDefault[str], USE_STRUCTURED] = None
    no_stop_trim: OnlyDefault[bool] = False
    sampling_seed: Annotated[OnlyDefault[int], USE_SEED] = None
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
    functions: Annotated[OnlyDefault[list[Any]], USE_TOOLS] = None
    """Older form of ``tools``."""
    function_call: Annotated[OnlyDefault[str], USE_TOOLS] = "none"
    """Older form of ``tool_choice``."""
    mm_processor_kwargs: OnlyDefault[dict[str, Any]] = None
    media_io_kwargs: OnlyDefault[dict[str, Any]] = None
    separate_reasoning: OnlyDefault[bool] = True
    """Tell reasoning apart from the answer."""
    stream_reasoning: OnlyDefault[bool] = True
    """Stream the reasoning, too."""
