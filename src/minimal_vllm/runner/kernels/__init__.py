"""Reading and writing the table of running requests, as Triton kernels; for GPUs."""
