"""Huge pages hold what the pages that they replace held."""

import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from minimal_vllm.device import huge_pages
from minimal_vllm.device.huge_pages import (
    DELAY,
    HUGE_PAGE,
    REST,
    SETTING,
    private_memory,
    use_huge_pages,
)

MAPS = """\
55d0a0000000-55d0a0021000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
7f0000200000-7f0000400000 r--p 00000000 00:00 0
7f0000400000-7f0000600000 rw-s 00000000 00:00 0
7f0000600000-7f0000800000 rw-p 00000000 fe:00 1234                       /usr/lib/a b.so
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
"""


def test_only_the_process_s_own_writable_memory_is_chosen():
    assert list(private_memory(MAPS)) == [
        (0x55D0A0000000, 0x55D0A0021000),
        (0x7F0000000000, 0x7F0000200000),
    ]


def huge_bytes(address):
    """Return how much of the range that holds an address lies in huge pages; None if unknown."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        return None
    holds = False
    for line in smaps.read_text().splitlines():
        if match := re.match(r"([\da-f]+)-([\da-f]+) ", line):
            holds = int(match[1], 16) <= address < int(match[2], 16)
        elif holds and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    return None


def is_collapsing():
    """Return whether this system replaces pages when it is told to: Linux from 6.1 on."""
    release = Path("/proc/sys/kernel/osrelease")
    if not (release.exists() and SETTING.exists()) or "[never]" in SETTING.read_text():
        return False
    return tuple(map(int, re.findall(r"\d+", release.read_text())[:2])) >= (6, 1)


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that were waited for, which took no time."""
    seconds = []
    monkeypatch.setattr(huge_pages.time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def memory():
    own = mmap.mmap(-1, 4 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(own, np.uint8)


def test_memory_keeps_its_contents(memory):
    numbers = np.random.default_rng(0).integers(0, 256, len(memory), np.uint8)
    memory[:] = numbers
    use_huge_pages()
    assert np.array_equal(memory, numbers)


@pytest.mark.skipif(not is_collapsing(), reason="needs Linux 6.1")
def test_memory_lies_in_huge_pages_once_they_are_asked_for(memory):
    memory[:] = 1
    use_huge_pages()
    assert huge_bytes(memory.ctypes.data) >= 2 * HUGE_PAGE


@pytest.mark.parametrize("setting", ["always madvise [never]\n", None])
def test_nothing_is_done_where_huge_pages_are_not_wanted_or_unknown(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(huge_pages, "SETTING", tmp_path / "enabled")
    if setting is not None:
        huge_pages.SETTING.write_text(setting)
    monkeypatch.setattr(huge_pages.ctypes, "CDLL", lambda *_, **__: pytest.fail("it went on"))
    use_huge_pages()


@pytest.mark.skipif(not is_collapsing(), reason="needs Linux 6.1")
def test_pages_are_replaced_late_with_rests(memory, waits, monkeypatch):
    clock = iter(range(1_000_000))  # so that each call takes a second
    monkeypatch.setattr(huge_pages.time, "monotonic", lambda: next(clock))
    memory[:] = 1
    use_huge_pages(DELAY)
    assert waits[0] == DELAY
    assert waits[1:].count(REST) == len(waits) - 1 >= 1
