"""Arguments of ``vllm serve`` that are not supported."""

from minimal_vllm.vllm_arguments.unsupported import (
    ANYTHING,
    OFF,
    ON_OR_OFF,
    Unsupported,
    by_name,
)

SERVER = by_name(
    Unsupported(
        "LoRA adapters can't be loaded; merge the adapter into the checkpoint",
        {"lora_modules": (), "prompt_adapters": ()},
    ),
    Unsupported(
        "one engine serves on one host and port",
        {
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
    Unsupported(
        "a server handles text; prompts may be token ids, and return_token_ids gives the answer's",
        {"skip_tokenizer_init": OFF},
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
    Unsupported("use a client without a read timeout", {"sse_keep_alive_interval": (0,)}),
    Unsupported("set it in the request", {"reasoning_effort_map": ()}),
    Unsupported(
        "usage, request ids, /load and /tokenizer_info are always there",
        {
            "enable_prompt_tokens_details": ON_OR_OFF,
            "enable_request_id_headers": ON_OR_OFF,
            "enable_server_load_tracking": ON_OR_OFF,
            "enable_tokenizer_info_endpoint": ON_OR_OFF,
        },
    ),
    Unsupported("/metrics has the times of requests", {"enable_per_request_metrics": OFF}),
    Unsupported(
        "answers have no system_fingerprint",
        {"fingerprint_mode": ANYTHING, "fingerprint_value": ()},
    ),
    Unsupported(
        "there is no such endpoint, model or supervisor here",
        {
            "cohere_is_reasoning_model": ON_OR_OFF,
            "cohere_format": ANYTHING,
            "enable_flash_late_interaction": ON_OR_OFF,
            "dp_supervisor_probe_interval_s": ANYTHING,
            "dp_supervisor_probe_timeout_s": ANYTHING,
            "dp_supervisor_probe_failure_threshold": ANYTHING,
        },
    ),
    Unsupported(
        "a request of /v1/messages says whether the model thinks",
        {"anthropic_disabled_thinking_effort": ("auto",)},
    ),
    Unsupported("the documentation loads its page's scripts", {"enable_offline_docs": OFF}),
)
"""Unsupported features, by argument of ``FrontendArgs``."""
