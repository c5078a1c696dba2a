"""The frames of a session's connection, in whatever pieces their bytes arrive."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from fdfs_storage.names.frames import Frames
from fdfsfuse.errors import ConnectionBroken, ProtocolError
from fdfsfuse.proto import names
from fdfsfuse.proto.header import HEADER_SIZE, pack_header
from fdfsfuse.server.connection import RECV_SIZE, FramedConnection


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio, "current_time", lambda: 7.0)


class Pair:
    """A connection of the storage, and the socket of its client."""

    def __init__(self) -> None:
        ours, self.client = socket.socketpair()
        self.connection = FramedConnection(ours, "peer")
        self.frames = Frames(self.connection)

    def close(self) -> None:
        self.connection.close()
        self.client.close()

    def all_there(self) -> Iterator[bytes]:
        while (body := self.frames.take()) is not None:
            yield bytes(body)


def frame(body: bytes, command: int = names.REQUEST, status: int = 0) -> bytes:
    return pack_header(len(body), command, status) + body


@given(
    sizes=st.lists(st.integers(17, 3 * RECV_SIZE), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 2 * RECV_SIZE), max_size=8),
)
def test_pieces_make_the_same_frames(sizes: list[int], cuts: list[int]) -> None:
    bodies = [bytes([number]) * size for number, size in enumerate(sizes)]
    data = b"".join(map(frame, bodies))
    pair = Pair()
    try:
        found: list[bytes] = []
        for cut in [*cuts, len(data)]:
            piece, data = data[:cut], data[cut:]
            pair.client.sendall(piece)
            for _ in range(len(piece) // RECV_SIZE + 8):
                assert pair.frames.receive()
                found += pair.all_there()
        assert found == bodies
        assert pair.connection.requests == len(bodies)
        assert pair.connection.idle
        assert not pair.connection.reading_since
    finally:
        pair.close()


def test_what_the_server_received_before_comes_first() -> None:
    pair = Pair()
    data = frame(b"a" * 20) + frame(b"b" * 20)
    pair.connection.put_back(data[:33])
    pair.frames = Frames(pair.connection)
    assert list(pair.all_there()) == [b"a" * 20]
    pair.client.sendall(data[33:])
    assert pair.frames.receive()
    assert list(pair.all_there()) == [b"b" * 20]
    pair.close()


@pytest.mark.parametrize("count", [HEADER_SIZE, HEADER_SIZE + names.PADDING_SIZE])
def test_padding_ends_patience(count: int) -> None:
    """Somebody waits, and sends requests that are not padded: they must not be left to gather."""
    pair = Pair()
    pair.client.sendall(frame(b"a" * 20, status=names.PATIENT))
    assert pair.frames.receive()
    assert list(pair.all_there()) == [b"a" * 20]
    assert pair.frames.patient
    padding = frame(bytes(names.PADDING_SIZE), names.PADDING)
    pair.client.sendall(padding[:count])
    assert pair.frames.receive()
    assert list(pair.all_there()) == ([b""] if count == len(padding) else [])
    assert not pair.frames.patient
    pair.client.sendall(padding[count:] + frame(b"b" * 20))
    bodies: list[bytes] = []
    while bodies[-1:] != [b"b" * 20]:
        assert pair.frames.receive()
        bodies += pair.all_there()
    assert not any(bodies[:-1])
    assert not pair.frames.patient
    pair.close()


@pytest.mark.parametrize("count", [4, 15])
def test_a_frame_that_has_begun_is_waited_for(count: int) -> None:
    """The watchdog of the server sees it, and its end is no clean end."""
    pair = Pair()
    pair.client.sendall(frame(b"a" * 20)[:count])
    assert pair.frames.receive()
    assert pair.frames.take() is None
    assert not pair.connection.idle
    assert pair.connection.reading_since == 7.0
    pair.client.close()
    with pytest.raises(ConnectionBroken):
        pair.frames.receive()
    pair.close()


def test_a_clean_end() -> None:
    pair = Pair()
    pair.client.close()
    assert not pair.frames.receive()
    pair.close()


@pytest.mark.parametrize(
    "data",
    [
        frame(b"a" * 20, names.ANSWER),
        frame(b"a" * 16),
        pack_header(names.FRAME_MAX + 1, names.REQUEST),
        b"\xff" * 10,
        pack_header(names.PADDING_SIZE + 1, names.PADDING),
    ],
    ids=["no request", "too short", "too long", "negative length", "too much padding"],
)
def test_what_is_no_request_is_refused_by_its_header(data: bytes) -> None:
    pair = Pair()
    pair.client.sendall(data)
    assert pair.frames.receive()
    with pytest.raises(ProtocolError):
        pair.frames.take()
    pair.close()
