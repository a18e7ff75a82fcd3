"""Paged attention: how queries find their keys and values in scattered blocks.

Read in this order: ``metadata`` (what a step tells the kernels), ``reference`` (the plain one,
the oracle), ``tiled`` (the CPU's), ``backend`` (which one is used).
"""
