"""Events of the prefix cache, published in vLLM's format, for routers that follow several servers.

``messages`` is what is sent, ``source`` makes it from what happens to the block pool, and
``publisher`` sends it.
"""
