"""Chunks that are written without h11 are those that it writes, and nothing else is changed."""

import asyncio

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from minimal_vllm.server.http_protocol import ChunkingConnection, HttpProtocol

REQUESTS = [
    b"POST / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"POST / HTTP/1.0\r\nhost: a\r\n\r\n",  # a client that knows no chunks
    b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
]
HEADERS = [[], [(b"content-length", b"6")], [(b"x", b"Transfer-Encoding: chunked")]]


def answers(kind, exchanges):
    """What a connection writes in some exchanges, and its state after each event."""
    connection, written = kind(h11.SERVER), []

    def tell(event):
        try:
            written.append(connection.send(event))
        except h11.LocalProtocolError as error:
            written.append(str(error))
        written.append(connection.states)

    for request, headers, parts in exchanges:
        connection.receive_data(request)
        while not isinstance(connection.next_event(), h11.EndOfMessage):
            pass
        tell(h11.Response(status_code=200, headers=headers))
        for part in parts:
            tell(h11.Data(data=b"" if request.startswith(b"HEAD") else part))  # as uvicorn does
        tell(h11.EndOfMessage())
        if connection.our_state is not h11.DONE:
            break
        connection.start_next_cycle()
    tell(h11.ConnectionClosed())
    return written


EXCHANGE = st.tuples(
    st.sampled_from(REQUESTS),
    st.sampled_from(HEADERS),
    st.lists(st.binary(max_size=40) | st.just(b"abc"), max_size=3),
)


@given(st.lists(EXCHANGE, max_size=3))
def test_each_byte_and_each_state_is_that_of_h11(exchanges):
    assert answers(ChunkingConnection, exchanges) == answers(h11.Connection, exchanges)


@pytest.mark.parametrize("size", [1, 10_000, 20_000, 70_000])
def test_a_head_may_be_as_long_as_with_uvicorn(size):
    async def reaction(protocol):
        connection = protocol(Config(None, log_config=None, lifespan="off"), ServerState(), {}).conn
        connection.receive_data(b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * size)
        try:
            return connection.next_event()
        except h11.RemoteProtocolError as error:
            return error.error_status_hint

    assert asyncio.run(reaction(HttpProtocol)) == asyncio.run(reaction(H11Protocol))
