"""The program of an HTTP process; the engine's process starts it."""

import asyncio
import logging
import socket
import sys
from contextlib import suppress

from minimal_vllm.garbage import frozen_garbage
from minimal_vllm.server import app  # noqa: F401 - while the engine's process loads the model
from minimal_vllm.server.engine_client import EngineFailedError
from minimal_vllm.server.http_server import serve
from minimal_vllm.server.log import log_to_stderr
from minimal_vllm.server.processes.messages import END, PreloadTokenizer, Setup, receive_one
from minimal_vllm.server.processes.remote_engine import RemoteEngine
from minimal_vllm.server.served_model import ServedModel
from minimal_vllm.server.service import Service
from minimal_vllm.signals import leave_to_main_process
from minimal_vllm.text.tokenizer import Tokenizer

logger = logging.getLogger("minimal_vllm.server.processes")

ACCEPT_AT_ONCE = 4
"""Number of waiting connections that a process accepts in a row, so that others get some, too."""


def main(channel_number: int, listener_number: int) -> int:
    """Serve, and return the exit status.

    Args:
        channel_number: file descriptor of the socket to the engine's process.
        listener_number: file descriptor of the socket that clients connect to.
    """
    leave_to_main_process()
    log_to_stderr()
    channel = socket.socket(fileno=channel_number)
    listener = socket.socket(fileno=listener_number)
    tokenizer, setup = None, None
    while setup is None:
        received = receive_one(channel)
        if not received:
            return 1  # the engine's process has ended while it loaded the model
        match received[0]:
            case PreloadTokenizer(folder):
                with suppress(ValueError):  # the engine's process says what is wrong
                    tokenizer = Tokenizer(folder)
            case Setup():
                setup = received[0]
    channel.setblocking(False)
    engine = RemoteEngine(channel, ServedModel.load(setup.facts, tokenizer))
    service = Service(
        engine.model, engine, engine, setup.config, setup.model_names, created=setup.created
    )
    try:
        with frozen_garbage():
            asyncio.run(serve(service, listener, engine.tell_ready, ACCEPT_AT_ONCE, [END]))
    except EngineFailedError:
        return 1  # the engine's process says why
    except OSError as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
