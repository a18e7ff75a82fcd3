"""``POST /v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's API, on the chat path.

Read ``blocks.py``, ``request.py``, ``translate.py``, ``answer_blocks.py``, ``answer.py`` and
``route.py``, in this order.
"""
