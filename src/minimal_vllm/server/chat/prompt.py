"""Rendering a conversation as a prompt by the model's chat template."""

import asyncio

from minimal_vllm.server.chat.request import ChatFields
from minimal_vllm.server.errors import ApiError
from minimal_vllm.server.harmony import fit_template
from minimal_vllm.server.service import Service
from minimal_vllm.text.chat_template import ChatTemplate


async def render_chat(service: Service, chat: ChatFields) -> str:
    """Return the prompt that a conversation becomes.

    It is rendered in another thread, because a long conversation takes long.

    Raises:
        ApiError: the request brings a template that isn't allowed, or the template fails.
    """
    if chat.chat_template is not None and not service.config.trust_request_chat_template:
        raise ApiError(
            400,
            "chat_template: this server uses no template but the model's "
            "(--trust-request-chat-template)",
            param="chat_template",
        )
    return await asyncio.to_thread(_render, service, chat)


def _render(service: Service, chat: ChatFields) -> str:
    # Not by ``load_chat_template``, which would read whatever file the client names.
    brought = chat.chat_template
    messages = [message.as_dict() for message in chat.messages]
    tools = [tool.as_dict() for tool in chat.tools or ()]
    if service.formats.reasoning == "openai_gptoss":
        messages, tools = fit_template(messages, tools)
    try:
        special_tokens = service.model.tokenizer.special_tokens
        template = ChatTemplate(brought, special_tokens) if brought is not None else None
        render = template.render if template else service.model.render_chat
        return render(
            messages,
            tools=tools or None,
            add_generation_prompt=chat.add_generation_prompt,
            continue_final_message=chat.continue_final_message,
            chat_template_content_format=service.config.chat_template_content_format,
            **(service.config.default_chat_template_kwargs or {}) | chat.template_variables,
        )
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from error
