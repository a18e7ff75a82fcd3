"""The program of every rank but the first, whose process starts it."""

import logging
import os
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch

from minimal_vllm.engine.build import build_engine
from minimal_vllm.engine.ranks.connect import connect
from minimal_vllm.engine.ranks.messages import Built, Call, Decided, Failed, Setup, Started
from minimal_vllm.signals import leave_to_main_process

if TYPE_CHECKING:
    from collections.abc import Mapping


def main(leader: Connection) -> int:
    """Do what rank 0 does, until it ends or something fails; return the exit status."""
    leave_to_main_process()
    try:
        setup: Setup = leader.recv()
        leader.send(Started())
    except (EOFError, OSError):
        return 1  # rank 0 is gone: it was interrupted while this process started
    calls: SimpleQueue[Call] = SimpleQueue()
    decisions: SimpleQueue[Decided] = SimpleQueue()
    queues = {Call: calls, Decided: decisions}
    Thread(target=_listen, args=(leader, queues), name="listener", daemon=True).start()
    try:
        _follow(setup, leader, calls, decisions)
    except Exception as error:
        with suppress(OSError):  # rank 0 is gone, too
            leader.send(Failed.because_of(error))
    return 1


def _listen(leader: Connection, queues: "Mapping[type, SimpleQueue[Any]]") -> None:
    """Pass on what rank 0 says. Once it is gone, end this process, whatever it is waiting for."""
    try:
        while True:
            message = leader.recv()
            queues[type(message)].put(message)
    except (EOFError, OSError):
        os._exit(0)


def _follow(
    setup: Setup,
    leader: Connection,
    calls: "SimpleQueue[Call]",
    decisions: "SimpleQueue[Decided]",
) -> None:
    logging.disable(logging.WARNING)  # rank 0 has the same to say
    torch.set_num_threads(setup.num_threads)
    ranks = connect(setup.config, setup.folder, setup.index)
    built = build_engine(setup.config, ranks=ranks, decide=lambda _: decisions.get().result)
    leader.send(Built())
    while True:
        call = calls.get()
        getattr(built.engine, call.method)(**call.arguments)


if __name__ == "__main__":
    sys.exit(main(Connection(int(sys.argv[1]))))
