"""Chunks that are written without h11 are those that it writes, and nothing else is changed."""

import h11
from hypothesis import given
from hypothesis import strategies as st

from minimal_vllm.server.http_protocol import ChunkingConnection

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
