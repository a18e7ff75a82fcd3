"""Paged attention over keys and values that lie in scattered blocks of the KV cache.

Read in this order: ``interface``, ``paged`` (writing to the cache), ``reference`` (the simplest
implementation, which all others must match), ``tiled``, ``tiled_step`` and ``long_prompt`` (for
CPUs), ``kernels``, ``triton_backend`` (which plans the kernels' work), ``library`` (cuDNN's kernel
for whole new prompts).
"""
