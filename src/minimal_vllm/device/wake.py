"""Waking a GPU up while Python is busy with something else."""

from ctypes import CDLL, byref, c_void_p
from threading import Thread


def wake_gpu() -> None:
    """Let a thread initialize the driver and make the first GPU's context, if there is a GPU.

    This takes 0.4 s, in which the thread doesn't keep others from running Python code. PyTorch then
    finds the driver initialized, and uses the same context.
    """
    Thread(target=_initialize, name="waker", daemon=True).start()


def _initialize() -> None:
    try:
        driver = CDLL("libcuda.so.1")
    except OSError:  # there is none
        return
    driver.cuInit(0)  # fails if the driver has no GPU, and then so does the next line
    driver.cuDevicePrimaryCtxRetain(byref(c_void_p()), 0)
