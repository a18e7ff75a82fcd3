"""Server options: address, keys, limits, and formats of the model's output."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from minimal_vllm.settings import SETTINGS, clear_errors
from minimal_vllm.text.content_format import ContentFormat

PositiveInt = Annotated[int, Field(ge=1)]
NonEmpty = Annotated[str, Field(min_length=1)]


TEMPLATE_ARGUMENTS = frozenset(
    {
        "self",
        "messages",
        "tools",
        "chat_template",
        "chat_template_content_format",
        "add_generation_prompt",
        "continue_final_message",
    }
)
"""Names that ``chat_template_kwargs`` may not set, because requests have fields for them."""


@clear_errors
@dataclass(frozen=True, config=SETTINGS)
class ServerConfig:
    """Server options, with vLLM's names where vLLM has them."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 accepts connections from other machines."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 chooses a free one."""
    api_server_count: Annotated[int, Field(ge=0, le=64)] | None = None
    """Number of processes that speak HTTP, beside the engine's; 0: the engine's process does.
    Default: 0 on a CPU or with --view; on a GPU one for four cores, and at most 4."""
    served_model_name: list[NonEmpty] | None = None
    """Names by which clients may call the model. Default: the name given here."""
    api_key: list[NonEmpty] | None = None
    """Key that clients must send; may be repeated. Default: the environment variable
    MINIMAL_VLLM_API_KEY, if it is set."""
    ssl_certfile: str | None = None
    """Certificate file, for https."""
    ssl_keyfile: str | None = None
    """Private key of the certificate. Default: in the certificate file."""
    allowed_origins: list[str] | None = None
    """Origins of web pages that may call the server (CORS); ``*`` allows all."""
    allowed_methods: list[str] | None = None
    """HTTP methods that web pages may use. Default: GET and POST."""
    allowed_headers: list[str] | None = None
    """HTTP headers that web pages may send. Default: all."""
    allow_credentials: bool = False
    """Allow web pages to send cookies."""
    root_path: str = ""
    """Path under which a proxy publishes the server, such as /llm. Requests may come with or
    without it."""
    uvicorn_log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = "warning"
    """Log level of the web server uvicorn. Requests are logged anyway."""
    enable_log_requests: bool = False
    """Log the sampling parameters and the number of prompt tokens of each request."""
    max_waiting_requests: PositiveInt = 1000
    """Maximum number of waiting requests; more are refused (429)."""
    max_choices: PositiveInt = 128
    """Maximum number of completions of one HTTP request, over all its prompts."""
    max_body_bytes: PositiveInt = 10 * 2**20
    """Maximum length of a request's body in bytes; longer ones are refused (413)."""
    shutdown_timeout: Annotated[float, Field(ge=0)] = 30.0
    """Seconds in which running requests may finish after SIGTERM or Ctrl-C."""
    view: bool = False
    """Serve a page at /view that shows the engine at work and can pause it."""
    enable_force_include_usage: bool = False
    """Add the usage to all streams of completions and chats: so far in each chunk, and at the
    end."""
    trust_request_chat_template: bool = False
    """Allow requests to bring a chat template, which is a program and may never end."""
    chat_template_content_format: ContentFormat = "auto"
    """Form of the messages' content in the chat template: string is one text, openai is a list of
    parts, auto is the form that the template seems to be written for."""
    default_chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, for requests that don't set them."""
    return_tokens_as_token_ids: bool = False
    """Write tokens as token_id:ID instead of text where log-probabilities are returned."""
    enable_auto_tool_choice: bool = False
    """Let the model decide whether to call tools; needs tool_call_parser. Default: on, if the
    chat template shows the format of its calls."""
    tool_call_parser: Literal["hermes", "llama3_json", "openai", "none"] | None = None
    """Format in which the model writes tool calls. Default: the one that the chat template shows,
    if it is known; none: look for no calls."""
    reasoning_parser: Literal["deepseek_r1", "openai_gptoss", "qwen3", "none"] | None = None
    """Format of the model's reasoning, to separate it from the answer; named for models.
    Default: the one that the chat template shows; none: all is the answer."""

    @model_validator(mode="after")
    def _tool_options_come_together(self) -> "ServerConfig":
        has_parser = self.tool_call_parser not in (None, "none")
        if self.enable_auto_tool_choice != has_parser:
            raise ValueError(
                "enable_auto_tool_choice and tool_call_parser need each other: give both or none"
            )
        return self

    @model_validator(mode="after")
    def _view_is_in_the_engine_s_process(self) -> "ServerConfig":
        if self.view and self.api_server_count:
            raise ValueError(
                "view pauses and shows an engine in its own process: it needs api_server_count=0"
            )
        return self

    @model_validator(mode="after")
    def _template_variables_are_free(self) -> "ServerConfig":
        taken = TEMPLATE_ARGUMENTS & (self.default_chat_template_kwargs or {}).keys()
        if taken:
            raise ValueError(f"default_chat_template_kwargs can't set {', '.join(sorted(taken))}")
        return self

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> "ServerConfig":
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ValueError("ssl_keyfile needs ssl_certfile, the certificate that it belongs to")
        return self
