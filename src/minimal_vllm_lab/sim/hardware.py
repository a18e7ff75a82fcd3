"""GPUs as their datasheets describe them."""

from dataclasses import dataclass

NVIDIA = "https://www.nvidia.com"
CONTEXT_BYTES = 2**29
"""Approximate GPU memory that the driver and the libraries take before anything is loaded."""


@dataclass(frozen=True)
class Gpu:
    """Peak rates and memory of a GPU; ``Achieved`` says which fraction of the rates is achieved."""

    tflops: float
    """Rate of dense 16-bit matrix products with 32-bit accumulation, without sparsity, in
    TFLOP/s."""
    bandwidth: float
    """Memory bandwidth in TB/s (10^12 bytes per second)."""
    memory_gib: int
    """Memory in GiB. Datasheets write the same number of GB, but the driver reports about this many
    GiB."""
    source: str
    """Datasheet with these numbers."""

    @property
    def memory(self) -> int:
        """Memory in bytes."""
        return self.memory_gib * 2**30


GPUS = {
    "b200": Gpu(2250, 8.0, 180, f"{NVIDIA}/en-us/data-center/dgx-b200/"),
    "h200": Gpu(989, 4.8, 141, f"{NVIDIA}/en-us/data-center/h200/"),
    "h100": Gpu(989, 3.35, 80, f"{NVIDIA}/en-us/data-center/h100/"),
    "a100": Gpu(312, 2.039, 80, f"{NVIDIA}/en-us/data-center/a100/"),
    "a100-40gb": Gpu(312, 1.555, 40, f"{NVIDIA}/en-us/data-center/a100/"),
    "l40s": Gpu(362, 0.864, 48, f"{NVIDIA}/en-us/data-center/l40s/"),
    "l4": Gpu(121, 0.3, 24, f"{NVIDIA}/en-us/data-center/l4/"),
    "a10": Gpu(125, 0.6, 24, f"{NVIDIA}/en-us/data-center/products/a10-gpu/"),
    "4090": Gpu(165.2, 1.008, 24, "NVIDIA Ada GPU Architecture (whitepaper, 2023), appendix A"),
    "3090": Gpu(71, 0.936, 24, "NVIDIA Ampere GA102 GPU Architecture (whitepaper, 2021), table 9"),
}
"""GPUs by name; the SXM variant where there are several.

Datasheets often quote twice the rate, which only sparse matrices reach.
"""
