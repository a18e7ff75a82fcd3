"""Runs commands as somebody would who reads of them."""

import os
import subprocess
import sys
from pathlib import Path

from tests.markdown import ROOT

PATIENCE = 1800
"""Seconds after which a command hangs, however slow the machine."""


def run(arguments, folder=ROOT):
    """Run a command with this Python's scripts first in the path; its output, as on a screen.

    It sees no GPU: the documents show what a CPU prints.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {"PATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        arguments,
        cwd=folder,
        env={**os.environ, **environment, "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=PATIENCE,
    )
