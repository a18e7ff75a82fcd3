"""Sampling as Triton kernels; for GPUs."""
