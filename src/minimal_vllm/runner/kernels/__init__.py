"""Triton kernels that read and write the table of running requests, on GPUs."""
