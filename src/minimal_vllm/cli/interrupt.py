"""Ctrl-C while a command is imported ends it quietly: there is nothing yet to clean up."""

import os
import signal
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
"""Exit status of a command that was interrupted, as the shell has it."""


def quit_on_ctrl_c() -> None:
    """Let Ctrl-C end the process at once, without a traceback, unless it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)


def raise_on_ctrl_c() -> None:
    """Let Ctrl-C raise ``KeyboardInterrupt`` again, as it does in any Python."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _quit(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
