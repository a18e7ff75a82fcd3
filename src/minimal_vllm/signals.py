"""Signals in the processes that the main process of a program starts."""

import signal

ENDING = (signal.SIGTERM, signal.SIGINT)
"""Signals that ask a program to end."""


def leave_to_main_process() -> None:
    """Ignore the signals that ask a program to end; the main process then ends this one.

    A service manager, such as systemd, sends them to all processes of a program at once. Whoever
    calls this must end as soon as the main process is gone.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
