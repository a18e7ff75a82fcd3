"""Answering requests of other chat APIs with the chat path.

Another API translates its request to the fields of a subclass of ``TranslatedChat``. The chat path
does the rest: ``prepare_translated`` does the same as ``prepare_chat``, but its errors name the
fields that the client sent.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field, ValidationError

from minimal_vllm.server.api_model import ApiModel, dropped_keys
from minimal_vllm.server.chat.request import ChatCompletionRequest
from minimal_vllm.server.chat.route import PreparedChat, log_dropped, prepare_chat
from minimal_vllm.server.errors import ApiError, as_api_error
from minimal_vllm.server.models import CacheSalt, RequestId, Seed
from minimal_vllm.server.service import Service


class TranslatedChat(ChatCompletionRequest):
    """A chat that another API's request was translated to."""

    client_fields: ClassVar[Mapping[str, str]] = {}
    """Dotted paths in the client's request for those in this one, where they differ."""

    notes: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Bookkeeping fields of the client's request."""

    @property
    def bookkeeping(self) -> dict[str, Any]:
        """The fields of the client's request that are only written to the log."""
        return self.notes

    def client_field(self, name: str) -> str:
        """Return the field of the client's request from which a sampling parameter comes."""
        field = super().client_field(name)
        return self.client_fields.get(field, field)


Chat = TypeVar("Chat", bound=TranslatedChat)


class PassedOnFields(ApiModel):
    """Fields of vLLM that any API for chats may have: they reach the chat path as they are."""

    request_id: RequestId | None = None
    """Part of the response's id; must be unique among running requests."""
    priority: int = 0
    """Priority; smaller values run first. Needs the server's ``--scheduling-policy=priority``."""
    cache_salt: CacheSalt | None = None
    """Salt of the prefix cache: only requests with the same salt share cached blocks."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the chat template, such as ``enable_thinking``."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: Seed | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None

    @property
    def passed_on(self) -> dict[str, Any]:
        """The fields of this class that the request sets, with their values."""
        names = PassedOnFields.model_fields.keys() & self.model_fields_set
        return {name: getattr(self, name) for name in sorted(names)}


def make_chat(chat_type: type[Chat], fields: Mapping[str, Any]) -> Chat:
    """Return the chat that has these fields.

    Raises:
        ApiError: the chat path refuses a field; the error names the client's.
    """
    try:
        return chat_type.model_validate(fields)
    except ValidationError as error:
        raise rename_field(as_api_error(error), chat_type.client_fields) from error


async def prepare_translated(
    service: Service, body: ApiModel, chat: TranslatedChat, response_id: str
) -> PreparedChat:
    """Prepare a chat like ``prepare_chat``, with errors that name the client's fields.

    Args:
        service: the model that answers.
        body: the request that the client sent.
        chat: the chat that it was translated to.
        response_id: the id of the answer.

    Raises:
        ApiError: the request can't be served; the message says why.
    """
    log_dropped(response_id, dropped_keys(body))
    try:
        return await prepare_chat(service, chat, response_id)
    except ApiError as error:
        raise rename_field(error, chat.client_fields) from error


def rename_field(error: ApiError, client_fields: Mapping[str, str]) -> ApiError:
    """Return the error about the field that the client sent.

    Args:
        error: an error about a field of the chat path.
        client_fields: as in ``TranslatedChat``; of two paths that fit, the longer counts.
    """
    param = error.param or ""
    fitting = [old for old in client_fields if f"{param}.".startswith(f"{old}.")]
    if not fitting:
        return error
    old = max(fitting, key=len)
    new = client_fields[old]
    message = error.detail
    if message.startswith(old):
        message = new + message.removeprefix(old)
    return ApiError(
        error.status_code,
        message,
        param=new + param.removeprefix(old),
        code=error.code,
        headers=error.headers,
    )
