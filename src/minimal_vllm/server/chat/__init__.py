"""``POST /v1/chat/completions``: from a conversation to the assistant's next message.

Read ``request.py``, ``prompt.py``, ``dialogue.py``, ``answer.py`` and ``route.py``, in this order.
Other APIs for chats translate their requests to ``ChatCompletionRequest``, and begin at
``route.prepare_chat``.
"""
