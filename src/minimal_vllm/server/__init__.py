"""HTTP server: OpenAI's API around one engine loop.

Start with ``engine_client.py`` and ``engine_loop.py``, the two halves of the way to the engine.
``async_engine.py`` joins them in one process, and ``processes/`` across several. Only ``config.py``
can be imported without the ``server`` extra.
"""
