"""Huge pages for weights that a CPU reads from end to end in each step.

A CPU looks up the address of each page of memory, and caches only the last few thousand results.
Linux gives a process pages of 4 KB, so reading 100 MB of weights takes 26,000 look-ups, and a
core's prefetching stops at the end of each page. With pages of 2 MB, reading is a fifth faster on
some CPUs, and no faster on others. Programs may ask for huge pages in advance, but the libraries
that allocate packed weights don't. So the pages are replaced after they are filled, which Linux can
do since version 6.1.

Steps take longer while pages are replaced. So this begins when the shortest programs have ended,
and rests most of the time. One call replaces many pages, because the system prepares each call for
as long as it takes to replace several pages.
"""

import ctypes
import time
from collections.abc import Iterator
from pathlib import Path

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""The system's setting: always, madvise or never. The file exists where Linux has huge pages."""
MADV_COLLAPSE = 25
"""Advice to ``madvise``: replace pages by huge ones now. Python's ``mmap`` doesn't know it."""
HUGE_PAGE = 2 << 20
"""Bytes of a huge page on most CPUs. Its address is a multiple of them."""
DELAY = 1.0
"""Seconds after loading a model until its pages are replaced."""
CALL = 8 * HUGE_PAGE
"""Maximum bytes to replace in one call."""
REST = 3.0
"""Time to rest after each call, in times of the call's duration."""


def use_huge_pages(delay: float = 0.0, rest: float = REST) -> None:
    """Replace pages of this process's own memory by huge ones, where the system can.

    The contents of the memory don't change. A gigabyte takes seconds, so call this in a separate
    thread. Nothing happens where huge pages are not available (other systems, an older Linux, too
    little memory) or not wanted (the system's setting is ``never``).

    Args:
        delay: seconds to wait before the first call.
        rest: see ``REST``.
    """
    if not SETTING.exists() or "[never]" in SETTING.read_text():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "malloc_trim"):  # in glibc: returns free memory, which needn't be copied then
        libc.malloc_trim(0)
    time.sleep(delay)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in private_memory(Path("/proc/self/maps").read_text()):
        first, end = -(-start // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
        for address in range(first, end, CALL):
            begun = time.monotonic()
            libc.madvise(address, min(CALL, end - address), MADV_COLLAPSE)
            time.sleep(rest * (time.monotonic() - begun))


def private_memory(maps: str) -> Iterator[tuple[int, int]]:
    """Yield the first address and the end of each range that holds writable memory of no file.

    Args:
        maps: contents of ``/proc/self/maps``; see ``man 5 proc``.
    """
    for line in maps.splitlines():
        addresses, access, _, _, inode, *name = line.split(maxsplit=5)
        if access == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, end = addresses.split("-")
            yield int(start, 16), int(end, 16)
