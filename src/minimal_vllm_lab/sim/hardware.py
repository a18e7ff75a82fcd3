"""GPUs, as their datasheets have them."""

from dataclasses import dataclass

NVIDIA = "https://www.nvidia.com"
CONTEXT_BYTES = 2**29
"""What the driver and the libraries take of a GPU's memory before anything is loaded, about."""


@dataclass(frozen=True)
class Gpu:
    """What the vendor promises; how much of it is had in practice, ``Achieved`` says."""

    tflops: float
    """Of dense 16-bit matrix products with 32-bit sums, in 10^12 per second; no sparsity."""
    bandwidth: float
    """Of its memory, in 10^12 bytes per second."""
    memory_gib: int
    """Datasheets write GB; what the driver shows is nearer to so many GiB."""
    source: str

    @property
    def memory(self) -> int:
        """Bytes."""
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
"""The SXM variants of those that have several; datasheets often quote twice the rate, which only
sparse matrices reach."""
