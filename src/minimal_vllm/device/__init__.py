"""Moving data between CPU and GPU, and launching kernels."""
