"""How the server is reached, and what it lets in."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

PositiveInt = Annotated[int, Field(ge=1)]
NonEmpty = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ServerConfig:
    """What a user may choose, with vLLM's names where vLLM has them."""

    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 lets other machines in."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """The port; 0: any that is free."""
    served_model_name: list[NonEmpty] | None = None
    """What clients call the model; None: as it was named here."""
    api_key: list[NonEmpty] | None = None
    """Clients must send this key, or one of these; None: the environment's MINIMAL_VLLM_API_KEY,
    if it is set."""
    ssl_certfile: str | None = None
    """Certificate, for https."""
    ssl_keyfile: str | None = None
    """Its private key."""
    allowed_origins: list[str] | None = None
    """Web pages from here may call the server (CORS); ``*``: from anywhere."""
    allowed_methods: list[str] | None = None
    """HTTP methods that they may use; None: GET and POST."""
    allowed_headers: list[str] | None = None
    """HTTP headers that they may send; None: all."""
    allow_credentials: bool = False
    """Whether they may send cookies."""
    max_waiting_requests: PositiveInt = 1000
    """While so many requests wait to run, more are refused (429)."""
    max_choices: PositiveInt = 128
    """One HTTP request may ask for so many completions, over all its prompts."""
    max_body_bytes: PositiveInt = 10 * 2**20
    """Longer bodies are refused (413)."""
    shutdown_timeout: Annotated[float, Field(ge=0)] = 30.0
    """Seconds that running requests have to finish after SIGTERM or Ctrl-C."""
    view: bool = False
    """Serve a page at /view that shows the engine at work, and can pause it."""
    trust_request_chat_template: bool = False
    """Let requests bring a chat template: it is a program, which may run for ever."""
    enable_auto_tool_choice: bool = False
    """Let the model decide whether to call tools; needs tool_call_parser. Default: on, if the
    chat template shows the format of its calls."""
    tool_call_parser: Literal["hermes", "llama3_json", "none"] | None = None
    """Format in which the model writes tool calls. Default: the one that the chat template shows,
    if it is known; none: look for no calls."""
    reasoning_parser: Literal["deepseek_r1", "qwen3", "none"] | None = None
    """Format of the model's reasoning, which is told apart from its answers; named for models.
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
    def _certificate_has_its_key(self) -> "ServerConfig":
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ValueError("ssl_keyfile needs ssl_certfile, the certificate that it belongs to")
        return self
