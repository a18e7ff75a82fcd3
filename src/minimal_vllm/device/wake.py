"""Initializing a GPU's driver while Python does other work."""

from ctypes import CDLL, byref, c_void_p
from threading import Thread


def wake_gpu() -> None:
    """Start a thread that initializes the driver and makes the first GPU's context.

    Without a GPU, the thread ends at once. Otherwise it takes 0.4 s, in which other threads can run
    Python code. PyTorch then finds the driver initialized, and uses the same context.
    """
    Thread(target=_initialize, name="waker", daemon=True).start()


def _initialize() -> None:
    try:
        driver = CDLL("libcuda.so.1")
    except OSError:  # there is none
        return
    driver.cuInit(0)  # fails if the driver has no GPU, and then so does the next line
    driver.cuDevicePrimaryCtxRetain(byref(c_void_p()), 0)
