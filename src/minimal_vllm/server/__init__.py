"""HTTP server: OpenAI's API around one engine loop.

Start with ``async_engine.py``. Only ``config.py`` can be imported without the ``server`` extra.
"""
