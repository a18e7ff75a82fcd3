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
"""Unsupported features, by argument of ``FrontendArgs``."""
