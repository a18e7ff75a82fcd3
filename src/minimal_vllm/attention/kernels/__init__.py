"""Attention as Triton kernels, each with what it reads and computes; for GPUs.

Read in this order: ``pieces`` (how a step's work is cut), ``decode``, ``shared`` (beginnings that
requests share), ``prefill``.
"""
