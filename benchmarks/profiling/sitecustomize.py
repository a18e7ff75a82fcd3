"""Profile of every Python process that starts with this folder on ``PYTHONPATH``.

Python imports ``sitecustomize`` at its start. A thread then samples the stacks of the others, and
charges the CPU time that each has used since the last sample to the module that it runs now. When
the process ends, the seconds by thread and module are written to the folder that ``CPU_PROFILE``
names. Nothing is counted before that folder contains a file ``begin``.
"""

import atexit
import json
import os
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType

INTERVAL = 0.004
"""Seconds between two samples."""
SWITCH_INTERVAL = 0.0002
"""Seconds after which the sampling thread gets the interpreter. By default it would wait 5 ms, and
mostly find the others where they wait."""
PACKAGES = ("site-packages", "dist-packages")


class Profile:
    """CPU seconds by thread and module.

    Args:
        folder: where to look for the beginning, and where to write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._used: dict[int, float] = {}
        self._modules: dict[str, str] = {}

    def run(self) -> None:
        """Sample until the process ends."""
        while not (self._folder / "begin").exists():
            time.sleep(10 * INTERVAL)
        while True:
            time.sleep(INTERVAL)
            frames = sys._current_frames()
            for thread in threading.enumerate():
                if thread.ident in frames and thread is not threading.current_thread():
                    self._charge(thread, frames[thread.ident])

    def _charge(self, thread: threading.Thread, frame: FrameType) -> None:
        if thread.ident is None:
            return
        try:
            now = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        except OSError:  # the thread has just ended
            return
        new = now - self._used.get(thread.ident, now)
        self._used[thread.ident] = now
        if new > 0:
            self._seconds[thread.name, self._module(frame.f_code.co_filename)] += new

    def _module(self, filename: str) -> str:
        """Return the module of ours, or the package, that a file belongs to."""
        if filename not in self._modules:
            self._modules[filename] = module_of(filename)
        return self._modules[filename]

    def write(self) -> None:
        """Write the profile to a file that is named after the process."""
        rows = [[*key, seconds] for key, seconds in self._seconds.items()]
        (self._folder / f"{os.getpid()}.json").write_text(json.dumps(rows))


def module_of(filename: str) -> str:
    """Return ``minimal_vllm.server.generation`` for a file of ours, ``starlette`` for others'."""
    parts = Path(filename).with_suffix("").parts
    if "minimal_vllm" in parts:
        return ".".join(parts[parts.index("minimal_vllm") :])
    for packages in PACKAGES:
        if packages in parts:
            return parts[parts.index(packages) + 1]
    return parts[-2] if parts[-2:-1] == ("asyncio",) else parts[-1]


if "CPU_PROFILE" in os.environ:
    sys.setswitchinterval(SWITCH_INTERVAL)
    _profile = Profile(Path(os.environ["CPU_PROFILE"]))
    threading.Thread(target=_profile.run, name="profiler", daemon=True).start()
    atexit.register(_profile.write)
