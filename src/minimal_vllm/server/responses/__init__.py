"""``POST /v1/responses``: OpenAI's newer API, as a translation onto the chat path.

Read ``opaque_reasoning.py``, ``input_items.py``, ``request.py``, ``functions.py``,
``translate.py``, ``output_items.py``, ``answer.py`` and ``route.py``, in this order. The server
stores nothing between requests: the client sends the whole conversation.
"""
