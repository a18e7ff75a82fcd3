"""Sampling as Triton kernels for GPUs.

Read in this order: ``weights`` (gaps and integer weights), ``sample`` (the passes), ``filters``;
then ``logprobs``.
"""
