"""Initializing a GPU's driver while Python does other work."""

from ctypes import CDLL, byref, c_void_p
from threading import Thread


def wake_gpu() -> bool:
    """Start a thread that initializes the driver and makes the first GPU's context.

    It takes 0.4 s, in which other threads can run Python code. PyTorch then finds the driver
    initialized, and uses the same context.

    Returns:
        Whether there is a driver at all.
    """
    try:
        driver = CDLL("libcuda.so.1")
    except OSError:
        return False
    Thread(target=_initialize, args=(driver,), name="waker", daemon=True).start()
    return True


def _initialize(driver: CDLL) -> None:
    driver.cuInit(0)  # fails if the driver has no GPU, and then so does the next line
    driver.cuDevicePrimaryCtxRetain(byref(c_void_p()), 0)
