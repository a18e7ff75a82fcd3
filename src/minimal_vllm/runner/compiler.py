"""The program that compiles kernels for the engine's process; see ``compilers``."""

import os
import socket
import sys
from multiprocessing.connection import Connection

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# These import nearly all kernels, so that no process has to.
import minimal_vllm.model.triton_modules
import minimal_vllm.runner.compile
import minimal_vllm.runner.graphs  # noqa: F401


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _nothing_kernel() -> None:
    pass


def main(channel_number: int) -> None:
    """Compile a kernel for each connection that comes over the channel.

    Args:
        channel_number: file descriptor of a socket to the engine's process.
    """
    # At its first kernel, for whatever GPU, Triton reads all of its files. Processes inherit that.
    triton.compile(ASTSource(_nothing_kernel, {}), target=GPUTarget("cuda", 90, 32))
    with socket.socket(fileno=channel_number) as channel:
        while numbers := socket.recv_fds(channel, 1, 1)[1]:
            with Connection(numbers[0]) as connection:
                if os.fork() == 0:
                    _compile_and_end(connection)


def _compile_and_end(connection: Connection) -> None:
    try:
        connection.recv().compile()
    finally:
        os._exit(0)  # closes the connection, which is the answer


if __name__ == "__main__":
    main(int(sys.argv[1]))
