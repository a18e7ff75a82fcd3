"""What crosses between processes arrives whole and in order, however slow the other end is."""

import socket
import threading

import pytest

from minimal_vllm.server.processes.channel import Channel
from minimal_vllm.server.processes.messages import Counts, Decoder, encode, receive_one

MESSAGES = [Counts(number, 0, 5) for number in range(40)]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_messages_are_decoded_however_their_frames_are_cut(size):
    stream = encode(MESSAGES[:1]) + encode(MESSAGES[1:30]) + encode(MESSAGES[30:])
    decoder, decoded = Decoder(), []
    for start in range(0, len(stream), size):
        decoded += decoder.feed(stream[start : start + size])
    assert decoded == MESSAGES


def test_the_first_frame_can_be_received_alone():
    ours, theirs = socket.socketpair()
    ours.sendall(encode(MESSAGES[:2]) + encode(MESSAGES[2:]))
    assert receive_one(theirs) == MESSAGES[:2]
    assert receive_one(theirs) == MESSAGES[2:]
    ours.close()
    assert receive_one(theirs) == []


def test_a_sender_never_waits_and_a_slow_reader_gets_all_in_order():
    ours, theirs = socket.socketpair()
    channel, big = Channel(ours), "x" * 2**20
    for number in range(30):  # many times what the socket takes
        channel.send([(number, big)])
    received = []
    reader = threading.Thread(target=lambda: received.extend(Channel(theirs).receive()))
    reader.start()
    while len(received) < 30:
        reader.join(0.01)
    channel.send(["last"])
    while len(received) < 31:
        reader.join(0.01)
    channel.close()
    reader.join()
    assert received == [*((number, big) for number in range(30)), "last"]


def test_what_is_sent_to_a_process_that_is_gone_is_lost_without_an_error():
    ours, theirs = socket.socketpair()
    theirs.close()
    channel = Channel(ours)
    channel.send(["lost"])
    channel.send(["lost"])
    assert list(channel.receive()) == []
