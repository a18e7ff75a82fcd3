"""Triton kernels of a layer: everything but attention. Each file says what its kernel computes.

Read in this order: ``norm``, ``heads``, ``activation`` and ``gate`` (between two products),
``matvec``, ``split`` and ``gated_product`` (products that are faster than the library's).
"""
