"""Paged attention: how queries find their keys and values in scattered blocks.

Read in this order: ``interface``, ``paged`` (the write to the cache), ``reference`` (the plainest
implementation, the oracle), ``tiled`` (for a CPU), ``kernels``, ``triton_backend`` (which plans
their work), ``library`` (whole new prompts by cuDNN).
"""
