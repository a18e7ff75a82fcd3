"""Huge pages for weights that a CPU reads from end to end in each step.

A CPU looks up where each page of memory lies, and keeps only the last few thousand answers. Linux
gives a process pages of 4 KB, so that reading 100 MB of weights takes 26,000 look-ups, and a core
that reads ahead stops at the end of each page. In pages of 2 MB it is a fifth faster on some CPUs,
and no faster on others. Programs may ask for them in advance, but the libraries that allocate
packed weights don't. So the pages are replaced once they are filled, as Linux can since version
6.1.

While a page is replaced, steps take longer. So this begins late, when short programs have ended,
and goes slowly.
"""

import ctypes
import errno
import time
from collections.abc import Iterator
from pathlib import Path

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""The system's setting: always, madvise or never. The file exists where Linux has huge pages."""
MADV_COLLAPSE = 25
"""Advice to ``madvise``: replace pages by huge ones now. Python's ``mmap`` doesn't know it."""
HUGE_PAGE = 2 << 20
"""Bytes of a huge page on most CPUs, and what its address is a multiple of."""
DELAY = 10.0
"""Seconds after loading a model until its pages are replaced."""
PAUSE = 0.03
"""Seconds between two pages: ten times as long as a page takes."""


def use_huge_pages(delay: float = 0.0) -> None:
    """Replace pages of this process's own memory by huge ones, where the system can.

    What the memory holds doesn't change. This takes several milliseconds for each page, so it is
    meant for a thread of its own. Where huge pages can't be had (other systems, an older Linux, too
    little memory) or shouldn't be (the system's setting is ``never``), nothing happens.

    Args:
        delay: seconds to wait before the first page.
    """
    if not SETTING.exists() or "[never]" in SETTING.read_text():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "malloc_trim"):  # in glibc: gives back what is free, which needn't be copied
        libc.malloc_trim(0)
    time.sleep(delay)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in private_memory(Path("/proc/self/maps").read_text()):
        first = -(-start // HUGE_PAGE) * HUGE_PAGE
        for page in range(first, end - HUGE_PAGE + 1, HUGE_PAGE):
            is_done = libc.madvise(page, HUGE_PAGE, MADV_COLLAPSE) == 0
            if is_done or ctypes.get_errno() != errno.EINVAL:  # which says that nothing is there
                time.sleep(PAUSE)


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
