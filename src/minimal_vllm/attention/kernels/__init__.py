"""Attention as Triton kernels for GPUs. Each file says what its kernel reads and computes.

Read in this order: ``softmax`` (the loop that all share), ``pieces`` (how a decode step is cut),
``decode``, ``shared`` (prefixes that requests share), ``prefill``.
"""
