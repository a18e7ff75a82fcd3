"""``POST /v1/chat/completions``: the assistant's next message in a conversation.

Read ``history.py``, ``request.py``, ``prompt.py``, ``dialogue.py``, ``answer.py`` and
``route.py``, in this order. Other APIs for chats translate their requests to
``ChatCompletionRequest`` and start at ``route.prepare_chat``.
"""
