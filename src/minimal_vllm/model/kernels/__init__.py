"""What a layer does between attention and the residual stream, as Triton kernels; for GPUs."""
