"""When Python looks for garbage: not while an engine is made, and later not among what stays."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """Collect no garbage for a while in which many objects are made that will stay.

    Each collection walks over many that are there already. While modules are imported, collections
    would take a fifth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def frozen_garbage() -> Iterator[None]:
    """Collect garbage from now on, but exclude all objects that exist.

    A full collection would walk the 300,000 objects that imports leave, and make the step in which
    it happens a tenth of a second longer.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    try:
        yield
    finally:
        gc.unfreeze()
