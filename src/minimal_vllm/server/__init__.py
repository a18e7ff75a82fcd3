"""The HTTP server: OpenAI's API around one engine loop.

``async_engine.py`` is its heart. Only ``config.py`` can be imported without the ``server`` extra.
"""
